"""LoMaR pretraining of a small ViT on the unlabelled tiles: some three minutes on two CPU cores."""

from ....configs.pretrain.lomar_vit_tiny import data, model, train

# Trees have no up and down, and the set is tiny: flips are welcome.
data.flip = True
train.total_batch_size = 32
# 94 tiles make 2 iterations an epoch
train.epochs = 55
train.warmup_epochs = 6
train.base_lr = 8e-3
train.checkpoint_epochs = 25
train.log_period = 10
