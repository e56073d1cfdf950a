"""The ViT encoder that LoMaR, MAE and the classifier share.

Shapes: B sequences, N tokens with the class token first, C embed_dim, p patch size.
"""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lomar_det.config.rules import FLAG, check_settings, number, pair, whole
from lomar_det.layers import (
    PatchEmbed,
    TokenGrid,
    build_blocks,
    grid_size,
    init_patch_embed,
    init_vit_weights,
    resize_pos_embed,
    sincos_pos_embed,
    to_pair,
)

_RULES = {
    "img_size": whole(1) | pair(whole(1)),
    "patch_size": whole(1),
    "embed_dim": whole(1),
    "depth": whole(1),
    "num_heads": whole(1),
    "mlp_ratio": number("(0, inf)"),
    "rel_pos": FLAG,
    "abs_pos": FLAG,
    "drop_path_rate": number("[0, 1)"),
}


class VisionTransformerEncoder(nn.Module):
    """Patch embedding, class token, positions, blocks and final norm, with the official names.

    Args:
        img_size: Pixels, one int or (height, width): lays out the absolute positions.
        patch_size: Side of a patch in pixels.
        embed_dim, depth, num_heads, mlp_ratio: The transformer.
        rel_pos: iRPE in every block.
        abs_pos: Fixed sine-cosine positions added to the patches.
        drop_path_rate: Stochastic depth of the last block.
        attention_backend: See `lomar_det.layers.irpe.dispatch`.

    Raises:
        ValueError: an impossible setting, sizes that do not fit each other, or no positions.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        *,
        rel_pos: bool = True,
        abs_pos: bool = False,
        drop_path_rate: float = 0.0,
        attention_backend: str = "auto",
    ):
        super().__init__()
        check_settings(locals(), _RULES)
        if not (rel_pos or abs_pos):
            raise ValueError(
                "rel_pos and abs_pos are both False: without positions all masked patches look the "
                "same to the model; set one of them"
            )
        self.img_size = to_pair(img_size)
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.grid = grid_size(img_size, patch_size)
        self.rel_pos, self.abs_pos = rel_pos, abs_pos
        self.architecture = {
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "rel_pos": "irpe" if rel_pos else "none",
            "abs_pos": abs_pos,
            "img_size": list(self.img_size),
        }
        self.patch_embed = PatchEmbed(patch_size, 3, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if abs_pos:
            positions = sincos_pos_embed(embed_dim, self.grid)
            self.pos_embed = nn.Parameter(positions, requires_grad=False)
        # MAE's decoder has the same settings.
        self.block_settings = {
            "mlp_ratio": mlp_ratio,
            "rel_pos": "irpe" if rel_pos else "none",
            "backend": attention_backend,
        }
        self.blocks = build_blocks(
            depth, drop_path_rate, dim=embed_dim, num_heads=num_heads, **self.block_settings
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        # Released LoMaR files have sine-cosine positions that the model with iRPE does not use.
        self.register_load_state_dict_pre_hook(_drop_unused_pos_embed)

    def init_weights(self) -> None:
        """MAE's initialisation; subclasses call it once all their modules exist."""
        self.apply(init_vit_weights)
        init_patch_embed(self.patch_embed.proj)
        nn.init.normal_(self.cls_token, std=0.02)

    def patch_positions(self, grid: tuple[int, int]) -> Tensor:
        """Absolute positions for a patch grid: (1, H * W, C)."""
        if tuple(grid) == self.grid:
            return self.pos_embed[:, 1:]
        return resize_pos_embed(self.pos_embed, grid)

    def with_cls_token(self, x: Tensor) -> Tensor:
        """(B, N - 1, C) -> (B, N, C)."""
        cls = self.cls_token
        if self.abs_pos:
            cls = cls + self.pos_embed[:, :1]
        return torch.cat([cls.expand(x.shape[0], -1, -1), x], dim=1)

    def embed_image(self, images: Tensor) -> tuple[Tensor, TokenGrid]:
        """All patches of (B, 3, height, width), with positions and class token: (B, N, C)."""
        H, W = grid_size(images.shape[2:], self.patch_size)
        x = self.patch_embed(images)
        if self.abs_pos:
            x = x + self.patch_positions((H, W))
        return self.with_cls_token(x), TokenGrid(H, W, cls_token=True)

    def forward_blocks(self, x: Tensor, grid: TokenGrid, buckets: Tensor | None = None) -> Tensor:
        """(B, N, C) through all blocks, before the final norm."""
        for block in self.blocks:
            x = block(x, grid, buckets)
        return x

    def patch_features(self, images: Tensor) -> Tensor:
        """Whole images (B, 3, height, width) -> patch tokens after the final norm (B, H * W, C)."""
        x = self.forward_blocks(*self.embed_image(images))
        return self.norm(x)[:, 1:]


def takes_arguments_of(parent: type) -> Callable:
    """Decorates an ``__init__`` whose ``*args, **kwargs`` go on to that of ``parent``.

    Its signature then lists the parent's arguments as well. Settings of a config, and those that a
    checkpoint describes, are checked against it.
    """

    def decorate(init: Callable) -> Callable:
        merged = dict(inspect.signature(parent.__init__).parameters)
        merged |= inspect.signature(init).parameters
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = [p for p in merged.values() if p.kind not in variadic]
        init.__signature__ = inspect.Signature(sorted(named, key=lambda p: p.kind))
        return init

    return decorate


def _drop_unused_pos_embed(module, state_dict, prefix, *_):
    if not module.abs_pos:
        state_dict.pop(prefix + "pos_embed", None)
