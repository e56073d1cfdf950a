"""The backbones: registered in detectron2's BACKBONE_REGISTRY and usable from LazyConfig."""

from ..compat import require_detectron2

require_detectron2()

from .lomar_vit import (
    LoMaRViT,
    build_lomar_vit_backbone,
    global_block_indexes,
    window_block_indexes,
)
from .norm import ChannelLayerNorm, fuse_norms
from .param_groups import layer_decay_params
from .pyramid import LoMaRFeaturePyramid, build_lomar_vitdet_backbone
from .yacs import add_lomar_config

__all__ = [
    "ChannelLayerNorm",
    "LoMaRFeaturePyramid",
    "LoMaRViT",
    "add_lomar_config",
    "build_lomar_vit_backbone",
    "build_lomar_vitdet_backbone",
    "fuse_norms",
    "global_block_indexes",
    "layer_decay_params",
    "window_block_indexes",
]
