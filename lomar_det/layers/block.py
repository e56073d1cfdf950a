"""The transformer block that pretraining, classification and detection share."""

from collections.abc import Collection

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from .attention import Attention
from .drop_path import DropPath
from .irpe.buckets import TokenGrid

LAYER_NORM_EPS = 1e-6


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP with GELU.

    Args:
        dim: Channels, C.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        drop_path: Stochastic depth rate of this block; None for a model without.
        **attention: Passed to `Attention`: ``qkv_bias``, ``rel_pos``, ``window_size``, ...
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float | None = None,
        **attention,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads, **attention)
        self.drop_path = nn.Identity() if drop_path is None else DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio))

    def forward(self, x: Tensor, grid: TokenGrid, buckets: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); ``grid`` and ``buckets`` as in `Attention.forward`."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid, buckets))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def build_blocks(
    depth: int,
    drop_path_rate: float = 0.0,
    window_block_indexes: Collection[int] = (),
    window_size: int = 0,
    **block,
) -> nn.ModuleList:
    """The blocks of a transformer.

    Args:
        depth: How many.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.
        window_block_indexes: Blocks that attend in windows; the others attend globally.
        window_size: Side of their windows in tokens.
        **block: Passed to every `Block`.
    """
    rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
    return nn.ModuleList(
        Block(
            # Every block of a model with stochastic depth has the same modules, the first as well:
            # torch.compile makes one graph for blocks that are alike.
            drop_path=rates[i] if drop_path_rate else None,
            window_size=window_size if i in window_block_indexes else 0,
            **block,
        )
        for i in range(depth)
    )
