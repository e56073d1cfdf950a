"""Mask R-CNN with a small ViT and small heads: trains in minutes on two CPU cores.

It is for trying things and for small, simple images, not for good results. The matching pretraining
config is `configs/pretrain/lomar_vit_tiny.py`.
"""

from ..common.models.tiny import shrink
from .mask_rcnn_lomar_vit_b import data, dataloader, lr_multiplier, model, optimizer, train

shrink(model)

data.image_size = 256
data.min_scale, data.max_scale = 0.8, 1.25
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 2

# Chosen on training images alone: docs/evidence/README.md.
optimizer.lr = 5e-4
train.lr_batch_size = 2
optimizer.weight_decay = 0.05
lr_multiplier.warmup_iters = 100
train.epochs, train.min_iter = 10, 1000
train.eval_period = 0
train.checkpointer.period = 500
train.output_dir = "output/custom_tiny"
