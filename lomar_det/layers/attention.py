"""Multi-head self-attention for pretraining, classification and detection alike.

Shapes: B batch, N tokens (class token first, if any), H x W patch grid, C embed_dim, h num_heads,
D head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_windows import map_even_windows, pad_to_windows, partition, unpartition
from .irpe.buckets import IRPE, NUM_BUCKETS, TokenGrid
from .irpe.dense import indexed_rpe_attention
from .irpe.dispatch import BACKENDS, rpe_attention
from .recorded import (
    is_recording,
    map_padded_windows,
    recorded_attention,
    recorded_rpe_attention,
)

REL_POS = ("irpe", "decomposed", "none")


class Attention(nn.Module):
    """Self-attention over a grid of tokens, whole or in windows.

    With ``rel_pos="irpe"`` a grid is cut into windows as equal as possible, of at most
    ``window_size``, and nothing is padded: the encoding serves any window shape, and zero tokens,
    which pretraining never saw, take no part. With ``decomposed`` or ``none`` the grid is padded
    with zero tokens that take part in attention, exactly as in detectron2's ViT.

    Args:
        dim: Channels of the input, C.
        num_heads: Heads; must divide ``dim``.
        qkv_bias: Bias in the qkv projection.
        rel_pos: ``irpe``, ``decomposed`` (detectron2's ViTDet) or ``none``.
        num_buckets: Rows of the iRPE table: 50, or 49 where no class token ever takes part.
        input_size: (H, W) for which decomposed tables are laid out; ``window_size`` overrules it.
        window_size: Largest side of an attention window in tokens; 0 attends globally.
        backend: See `rpe_attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        rel_pos: str = "irpe",
        num_buckets: int = NUM_BUCKETS,
        input_size: tuple[int, int] | None = None,
        window_size: int = 0,
        backend: str = "auto",
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embed_dim {dim} is not a multiple of num_heads {num_heads}")
        if rel_pos not in REL_POS:
            raise ValueError(f"rel_pos {rel_pos!r} is not one of {', '.join(REL_POS)}")
        if backend not in BACKENDS:
            raise ValueError(f"attention backend {backend!r} is not one of {', '.join(BACKENDS)}")
        self.num_heads = num_heads
        self.rel_pos = rel_pos
        self.window_size = window_size
        self.backend = backend
        head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        if rel_pos == "irpe":
            self.rpe_k = IRPE(head_dim, num_buckets)
        elif rel_pos == "decomposed":
            height, width = (window_size, window_size) if window_size else input_size
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * height - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * width - 1, head_dim))

    def forward(self, x: Tensor, grid: TokenGrid, buckets: Tensor | None = None) -> Tensor:
        """Attends within the grid or its windows.

        Args:
            x: (B, N, C), N = ``grid.num_tokens``; with ``buckets``, any subset of the grid.
            grid: The token grid; windows allow no class token.
            buckets: (B, N, N) iRPE buckets of a subset of the grid (`subset_buckets`).
        """
        attend, map_windows = self._attend, map_even_windows
        if is_recording():
            attend, map_windows = self._attend_recorded, map_padded_windows
        if not self.window_size:
            return self.proj(attend(self.qkv(x), grid, buckets))
        B, N, C = x.shape
        H, W, k = grid.height, grid.width, self.window_size
        x = x.view(B, H, W, C)
        if self.rel_pos == "irpe":
            x = map_windows(self.qkv(x), k, attend)
        else:
            x = pad_to_windows(x, k)
            padded = x.shape[1:3]
            x = attend(self.qkv(partition(x, k, k)), TokenGrid(k, k))
            x = unpartition(x, k, k, *padded)[:, :H, :W]
        return self.proj(x.reshape(B, N, C))

    def _attend(self, qkv: Tensor, grid: TokenGrid, buckets: Tensor | None = None) -> Tensor:
        """(B, N, 3C) -> (B, N, C), before the output projection."""
        q, k, v = self._split_heads(qkv)
        if self.rel_pos != "irpe":
            out = F.scaled_dot_product_attention(q, k, v, self._bias(q, grid))
        elif buckets is None:
            out = rpe_attention(q, k, v, self.rpe_k.table, grid, self.backend)
        else:
            out = indexed_rpe_attention(q, k, v, self.rpe_k.table, buckets)
        return _merge_heads(out)

    def _attend_recorded(
        self,
        qkv: Tensor,
        grid: TokenGrid,
        buckets: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """`_attend` for exported graphs; ``valid`` (B, N) marks the tokens that take part."""
        if buckets is not None:  # the formula for any buckets serves any size
            return self._attend(qkv, grid, buckets)
        q, k, v = self._split_heads(qkv)
        if self.rel_pos == "irpe":
            out = recorded_rpe_attention(q, k, v, self.rpe_k.table, grid, valid)
        else:
            out = recorded_attention(q, k, v, self._bias(q, grid))
        return _merge_heads(out)

    def _bias(self, q: Tensor, grid: TokenGrid) -> Tensor | None:
        """What is added to the logits, where it does not come from iRPE."""
        if self.rel_pos == "decomposed":
            return decomposed_bias(q, self.rel_pos_h, self.rel_pos_w, grid)
        return None

    def _split_heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(B, N, 3C) -> q, k, v, each (B, h, N, D)."""
        B, N, _ = qkv.shape
        return qkv.view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _merge_heads(x: Tensor) -> Tensor:
    """(B, h, N, D) -> (B, N, C)."""
    return x.transpose(1, 2).flatten(2)


def decomposed_bias(q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, grid: TokenGrid) -> Tensor:
    """detectron2's decomposed relative positions (Li et al., MViTv2, equation 4) as a bias.

    Args:
        q: (B, h, H * W, D), unscaled.
        rel_pos_h, rel_pos_w: (2 * size - 1, D) tables, interpolated if ``grid`` needs other sizes.

    Returns:
        (B, h, H * W, H * W).
    """
    B, h, N, D = q.shape
    H, W = grid.height, grid.width
    q = q.reshape(B, h, H, W, D)
    rows = torch.einsum("bhyxd,ykd->bhyxk", q, _distances(rel_pos_h, H).to(q.dtype))
    columns = torch.einsum("bhyxd,xkd->bhyxk", q, _distances(rel_pos_w, W).to(q.dtype))
    return (rows[..., :, None] + columns[..., None, :]).reshape(B, h, N, N)


def _distances(rel_pos: Tensor, size: int) -> Tensor:
    """(2 * s - 1, D) table -> (size, size, D): the row of each query-key distance on one side."""
    if rel_pos.shape[0] != 2 * size - 1:
        rel_pos = F.interpolate(rel_pos.T[None], size=2 * size - 1, mode="linear")[0].T
    coords = torch.arange(size, device=rel_pos.device)
    return rel_pos[coords[:, None] - coords[None, :] + size - 1]
