"""Asymmetric LoMaR of a small ViT on the unlabelled images: some three minutes of two cores."""

from ....configs.pretrain.lomar_asym_vit_tiny import data, model, train

data.path = "projects/blood_cells/data/annotations_train.json"
data.image_root = "projects/blood_cells/data/images"
data.num_workers = 0  # opening these images takes a tenth of a step
# In minutes, many small steps learn more than few large ones: 18 an epoch.
train.total_batch_size = 16
train.base_lr = 8e-3
train.epochs, train.warmup_epochs = 66, 6.6
train.precision = "bf16"
train.checkpoint_epochs = 20
train.picture_epochs = 22
train.log_period = 20
