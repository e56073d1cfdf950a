"""The LoMaR encoder as a detectron2 backbone.

Shapes: B images, H x W patch grid, N = H * W tokens, C embed_dim.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import (
    NUM_SPATIAL_BUCKETS,
    PatchEmbed,
    TokenGrid,
    build_blocks,
    grid_size,
    init_patch_embed,
    init_vit_weights,
    resize_pos_embed,
)


def global_block_indexes(depth: int, num_global: int = 4) -> list[int]:
    """The blocks with global attention, evenly spaced: 2, 5, 8, 11 of 12 (ViTDet section 3)."""
    num_global = min(num_global, depth)
    return [(i + 1) * depth // num_global - 1 for i in range(num_global)]


def window_block_indexes(depth: int, num_global: int = 4) -> list[int]:
    """The blocks with window attention: all but the evenly spaced global ones."""
    return sorted(set(range(depth)) - set(global_block_indexes(depth, num_global)))


class LoMaRViT(Backbone):
    """Plain ViT with iRPE for detection; takes any image size, square or not.

    The iRPE tables come from pretraining as they are: nothing is interpolated, and the row of the
    class token is dropped. With ``rel_pos="decomposed", use_abs_pos=True`` the model computes
    exactly what detectron2's own ViT computes, with the same state-dict names (the MAE baseline).

    Args:
        img_size: Training image size in pixels; only the size of decomposed tables depends on it.
        patch_size: Side of a patch in pixels, and the stride of the feature.
        embed_dim, depth, num_heads, mlp_ratio: The transformer.
        window_size: Side of the attention windows in tokens.
        window_block_indexes: Blocks with window attention; the others attend globally.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.
        rel_pos: ``irpe``, ``decomposed`` or ``none``.
        use_abs_pos: Add absolute positions, resized from ``pretrain_img_size``.
        pretrain_img_size: Image size in pixels of the absolute positions.
        attention_backend: See `lomar_det.layers.irpe.dispatch`.
        use_act_checkpoint: Recompute each block in backward to save memory.
        out_feature: Name of the output feature.
        in_chans: Channels of the images.
        qkv_bias: Biases for queries, keys and values.
        freeze_at: 0 trains everything; 1 freezes patch embedding and positions; 1 + k also freezes
            the first k blocks, without stochastic depth; 1 + ``depth`` freezes the backbone. Frozen
            parameters stay out of the optimizer, and frozen blocks keep nothing for backward.

    Raises:
        ValueError: settings contradict each other; in ``forward``, the sides of the images are not
            multiples of the patch size.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        window_size: int = 14,
        window_block_indexes: Sequence[int] = (0, 1, 3, 4, 6, 7, 9, 10),
        drop_path_rate: float = 0.0,
        rel_pos: str = "irpe",
        use_abs_pos: bool = False,
        pretrain_img_size: int = 224,
        attention_backend: str = "auto",
        use_act_checkpoint: bool = False,
        out_feature: str = "last_feat",
        in_chans: int = 3,
        qkv_bias: bool = True,
        freeze_at: int = 0,
    ):
        super().__init__()
        outside = [i for i in window_block_indexes if not 0 <= i < depth]
        if outside:
            raise ValueError(f"window_block_indexes {outside} do not exist in a depth of {depth}")
        if window_block_indexes and window_size < 1:
            raise ValueError("window_block_indexes need a window_size of at least 1")
        if not 0 <= freeze_at <= depth + 1:
            raise ValueError(
                f"freeze_at {freeze_at} is not in 0 .. {depth + 1}: patch embedding and positions "
                f"are the first stage, then come {depth} blocks"
            )
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.patch_size = patch_size
        self.pos_embed = None
        if use_abs_pos:
            rows, columns = grid_size(pretrain_img_size, patch_size)
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = build_blocks(
            depth,
            drop_path_rate,
            window_block_indexes,
            window_size,
            dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            rel_pos=rel_pos,
            num_buckets=NUM_SPATIAL_BUCKETS,
            input_size=(img_size // patch_size, img_size // patch_size),
            backend=attention_backend,
        )
        self.use_act_checkpoint = use_act_checkpoint
        self.apply(init_vit_weights)
        init_patch_embed(self.patch_embed.proj)
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: embed_dim}
        self._out_feature_strides = {out_feature: patch_size}
        self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> None:
        self.num_frozen_blocks = max(freeze_at - 1, 0)
        if freeze_at:
            self.patch_embed.requires_grad_(False)
            self.blocks[: self.num_frozen_blocks].requires_grad_(False)
            if self.pos_embed is not None:
                self.pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> "LoMaRViT":
        """As in torch, but frozen blocks stay in eval mode, without stochastic depth."""
        super().train(mode)
        self.blocks[: self.num_frozen_blocks].eval()
        return self

    @property
    def size_divisibility(self) -> int:
        return self.patch_size

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, in_chans, height, width) -> {out_feature: (B, C, H, W)}."""
        H, W = grid_size(images.shape[-2:], self.patch_size)
        grid = TokenGrid(H, W)
        x = self.patch_embed(images)  # (B, N, C)
        if self.pos_embed is not None:
            x = x + resize_pos_embed(self.pos_embed, (H, W))
        for block in self.blocks:
            if self.use_act_checkpoint and block.training:
                x = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x = block(x, grid)
        feature = x.transpose(1, 2).reshape(x.shape[0], -1, H, W)
        return {self._out_features[0]: feature}


@BACKBONE_REGISTRY.register()
def build_lomar_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> LoMaRViT:
    """The yacs route: a `LoMaRViT` from ``cfg.MODEL.LOMAR`` (see `add_lomar_config`)."""
    options = {key.lower(): value for key, value in cfg.MODEL.LOMAR.items()}
    num_global = options.pop("num_global_blocks")
    del options["square_pad"]  # the pyramid's
    return LoMaRViT(
        window_block_indexes=window_block_indexes(options["depth"], num_global),
        in_chans=input_shape.channels,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        **options,
    )
