"""LoMaR pretraining as in the paper: ViT-B/16 at 224, 4 windows of 7x7 patches, 1600 epochs."""

from detectron2.config import LazyCall as L

from lomar_pretrain import LoMaR
from lomar_pretrain.runs.settings import PretrainData, PretrainSettings

from .models.vit import VIT_B

model = L(LoMaR)(
    img_size=224,
    patch_size=16,
    **VIT_B,
    mlp_ratio=4.0,
    window_size=7,
    num_windows=4,
    mask_ratio=0.8,
    norm_pix_loss=True,
    rel_pos=True,
    abs_pos=False,
    attention_backend="auto",
)

# Every setting, its default and what it means: docs/settings.md.
data = PretrainData.defaults()
train = PretrainSettings.defaults(output_dir="output/pretrain")
