"""Linear probe: one linear layer on the frozen features of ViT-B/16 at 224, MAE's protocol.

A BatchNorm without weights normalises the features. LARS, no weight decay, only crops and flips as
augmentation, 90 epochs, batch 16384.
"""

from detectron2.config import LazyCall as L

from lomar_pretrain import VisionTransformerEncoder
from lomar_pretrain.models.linear_probe import LinearProbe

from .finetune import data, train
from .models.vit import VIT_B

model = L(LinearProbe)(
    encoder=L(VisionTransformerEncoder)(
        img_size=224,
        patch_size=16,
        **VIT_B,
        mlp_ratio=4.0,
        rel_pos=True,
        abs_pos=False,
        attention_backend="auto",
    ),
    # The class folders decide this number.
    num_classes=1000,
)

data.augmentation.auto_augment = None
data.augmentation.re_prob = None

train.epochs = 90
train.warmup_epochs = 10
train.base_lr = 0.1
train.total_batch_size = 16384
train.max_batch_per_gpu = 512
train.optimizer = "lars"
train.weight_decay = 0.0
train.layer_decay = None
train.mixup = train.cutmix = train.label_smoothing = 0.0
train.ddp.broadcast_buffers = True
train.output_dir = "output/linear_probe"
