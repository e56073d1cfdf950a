"""Linear probe of the small ViT of `configs/pretrain/lomar_vit_tiny.py` on class folders."""

from ..common.linear_probe import data, model, train
from ..common.models.tiny import TINY_VIT

model.encoder.update(TINY_VIT)
data.num_workers = 2
train.epochs = 20
train.warmup_epochs = 2
train.total_batch_size = 64
# LARS is made for large batches, and these are small.
train.optimizer = "adamw"
train.base_lr = 4e-3
train.output_dir = "output/linear_tiny"
