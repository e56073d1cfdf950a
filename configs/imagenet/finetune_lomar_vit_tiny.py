"""Fine-tuning a small ViT on class folders of your own: minutes on two CPU cores.

The matching pretraining config is `configs/pretrain/lomar_vit_tiny.py`.
"""

from ..common.finetune import data, model, train
from ..common.models.tiny import TINY_VIT

model.update(TINY_VIT)
model.drop_path_rate = 0.0
data.num_workers = 2
data.augmentation.scale = [0.3, 1.0]
data.augmentation.auto_augment = None
train.epochs = 20
train.warmup_epochs = 2
train.total_batch_size = 64
train.mixup = train.cutmix = 0.0
train.output_dir = "output/finetune_tiny"
