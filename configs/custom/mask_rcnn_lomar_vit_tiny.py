"""Mask R-CNN with a small ViT and small heads: trains in minutes on two CPU cores.

It is for trying things and for small, simple images, not for good results. The matching pretraining
config is `configs/pretrain/lomar_vit_tiny.py`.
"""

from ..common.models.tiny import shrink
from .mask_rcnn_lomar_vit_b import data, dataloader, lr_multiplier, model, optimizer, train

shrink(model)

data.image_size = 256
data.min_scale, data.max_scale = 0.8, 1.25
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = dataloader.test.num_workers = 2

optimizer.lr = 5e-4
train.lr_batch_size = 4
optimizer.weight_decay = 0.05
optimizer.params.lr_decay_rate = 0.9
lr_multiplier.warmup_iters = 50
train.clip_grad_norm = 5.0
train.epochs = 10
train.eval_period = 0
train.checkpointer.period = 500
train.output_dir = "output/custom_tiny"
