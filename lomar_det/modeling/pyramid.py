"""ViTDet's simple feature pyramid for images of any size."""

import math

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from .lomar_vit import build_lomar_vit_backbone
from .norm import fuse_norms


class LoMaRFeaturePyramid(SimpleFeaturePyramid):
    """detectron2's `SimpleFeaturePyramid` for images of any size.

    There are three differences. ``padding_constraints`` has the key that ImageList reads; upstream
    misspells it, so images are never padded to the stride. ``square_pad`` is off by default, so
    that small images cost less. Norms are `ChannelLayerNorm`. Arguments are those of the base
    class.
    """

    def __init__(
        self,
        net: Backbone,
        in_feature: str = "last_feat",
        out_channels: int = 256,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=None,
        norm: str = "LN",
        square_pad: int = 0,
    ):
        patch_size = net.output_shape()[in_feature].stride
        if patch_size & (patch_size - 1):
            raise ValueError(
                f"a pyramid over patches of {patch_size} pixels has no strides 4, 8, 16, 32: use a "
                "backbone of patch size 16 (for ViT-H, ViTDet resizes MAE's kernels from 14 to 16)"
            )
        super().__init__(net, in_feature, out_channels, scale_factors, top_block, norm, square_pad)
        fuse_norms(self)
        # Whole patches for the backbone, and whole cells for the coarsest pyramid level.
        self._size_divisibility = math.lcm(self._size_divisibility, patch_size)
        if square_pad % self._size_divisibility:
            raise ValueError(
                f"square_pad {square_pad} is not a multiple of {self._size_divisibility}, the "
                "stride of the coarsest pyramid level"
            )

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}


@BACKBONE_REGISTRY.register()
def build_lomar_vitdet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> LoMaRFeaturePyramid:
    """The yacs route: `LoMaRViT` with its pyramid (see `add_lomar_config`)."""
    return LoMaRFeaturePyramid(
        build_lomar_vit_backbone(cfg, input_shape),
        in_feature=cfg.MODEL.LOMAR.OUT_FEATURE,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        top_block=LastLevelMaxPool(),
        norm=cfg.MODEL.FPN.NORM or "LN",
        square_pad=cfg.MODEL.LOMAR.SQUARE_PAD,
    )
