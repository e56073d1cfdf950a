"""Pure PyTorch building blocks: importable without detectron2."""

from .attention import Attention
from .block import Block, build_blocks
from .drop_path import DropPath
from .embed import (
    PatchEmbed,
    grid_size,
    patchify,
    resize_pos_embed,
    sincos_pos_embed,
    to_pair,
    unpatchify,
)
from .init import init_patch_embed, init_vit_weights
from .irpe.buckets import (
    CLS_BUCKET,
    IRPE,
    NUM_BUCKETS,
    NUM_SPATIAL_BUCKETS,
    TokenGrid,
    bucket_table,
    piecewise_index,
    subset_buckets,
)
from .irpe.dispatch import rpe_attention

__all__ = [
    "CLS_BUCKET",
    "IRPE",
    "NUM_BUCKETS",
    "NUM_SPATIAL_BUCKETS",
    "Attention",
    "Block",
    "DropPath",
    "PatchEmbed",
    "TokenGrid",
    "bucket_table",
    "build_blocks",
    "grid_size",
    "init_patch_embed",
    "init_vit_weights",
    "patchify",
    "piecewise_index",
    "resize_pos_embed",
    "rpe_attention",
    "sincos_pos_embed",
    "subset_buckets",
    "to_pair",
    "unpatchify",
]
