"""Linear probe on ImageNet-1k at 224x224: one linear layer on frozen features.

MAE's protocol: features normalised by a BatchNorm without weights, LARS, no weight decay, no
augmentation but crops and flips, 90 epochs, batch 16384.
"""

from ..common.finetune import data, model, train

model.drop_path_rate = 0.0
data.augmentation.auto_augment = None
data.augmentation.re_prob = 0.0
train.mode = "linear"
train.epochs = 90
train.warmup_epochs = 10
train.base_lr = 0.1
train.total_batch_size = 16384
train.optimizer = "lars"
train.weight_decay = 0.0
train.mixup = train.cutmix = train.label_smoothing = 0.0
train.output_dir = "output/linear_lomar_vit_b_224"
