"""Fine-tuning for classification as in the paper: ViT-B/16 at 224, 100 epochs, batch 1024.

Where the paper is silent the settings are MAE's: layer decay, stochastic depth, cutmix, label
smoothing, RandAugment, random erasing.
"""

from detectron2.config import LazyCall as L

from lomar_pretrain import VisionTransformerClassifier
from lomar_pretrain.runs.settings import FinetuneData, FinetuneSettings

from .models.vit import VIT_B

model = L(VisionTransformerClassifier)(
    img_size=224,
    patch_size=16,
    **VIT_B,
    mlp_ratio=4.0,
    # The class folders decide this number.
    num_classes=1000,
    drop_path_rate=0.1,
    rel_pos=True,
    abs_pos=False,
    attention_backend="auto",
)

# Every setting, its default and what it means: docs/settings.md.
data = FinetuneData.defaults()
train = FinetuneSettings.defaults(output_dir="output/finetune")
