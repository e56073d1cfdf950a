"""The backbones: registered in detectron2's BACKBONE_REGISTRY and usable from LazyConfig."""

from ..compat import require_detectron2

require_detectron2()

from .config import add_lomar_config  # noqa: E402
from .lomar_vit import (  # noqa: E402
    LoMaRViT,
    build_lomar_vit_backbone,
    global_block_indexes,
    window_block_indexes,  # noqa: E402
)
from .optim import layer_decay_params  # noqa: E402
from .pyramid import LoMaRFeaturePyramid, build_lomar_vitdet_backbone  # noqa: E402

__all__ = [
    "LoMaRFeaturePyramid",
    "LoMaRViT",
    "add_lomar_config",
    "build_lomar_vit_backbone",
    "build_lomar_vitdet_backbone",
    "global_block_indexes",
    "layer_decay_params",
    "window_block_indexes",
]
