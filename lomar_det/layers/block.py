"""The transformer block that pretraining, classification and detection share."""

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from .attention import Attention
from .irpe.buckets import TokenGrid

LAYER_NORM_EPS = 1e-6


class Block(nn.Module):
    """Pre-norm transformer block: attention, then an MLP with GELU.

    Args:
        dim: Channels, C.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        drop_path: Stochastic depth rate of this block.
        **attention: Passed to `Attention`: ``qkv_bias``, ``rel_pos``, ``window_size``, ...
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0, **attention
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads, **attention)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden_features=int(dim * mlp_ratio))

    def forward(self, x: Tensor, grid: TokenGrid, buckets: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); ``grid`` and ``buckets`` as in `Attention.forward`."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid, buckets))
        return x + self.drop_path(self.mlp(self.norm2(x)))
