"""LoMaR with a small ViT, for trying things and for `configs/custom/mask_rcnn_lomar_vit_tiny.py`.

224x224 crops, 4 windows. Batch 64 and a higher base learning rate, so that the model learns
something within minutes on two CPU cores.
"""

from ..common.models.tiny import TINY_VIT
from ..common.pretrain import data, model, train

model.update(TINY_VIT)
data.num_workers = 2
train.epochs = 100
train.warmup_epochs = 10
train.total_batch_size = 64
train.base_lr = 1e-3
train.output_dir = "output/pretrain/lomar_vit_tiny"
