"""LoMaR pretraining of a small ViT on the unlabelled tiles: some three minutes on two CPU cores."""

from ....configs.pretrain.lomar_vit_tiny import data, model, train

# Trees have no up and down, and the set is tiny: flips are welcome.
data.flip = True
# 94 tiles make 11 iterations an epoch: in minutes, many small steps learn more than few large ones
train.total_batch_size = 8
train.epochs = 55
train.warmup_epochs = 5
train.base_lr = 1.6e-2
train.checkpoint_epochs = 25
train.log_period = 10
