"""Attention for graphs that torch.export or torch.jit.trace record: one graph for all sizes.

While they record, sizes are symbols or tensors. Nothing here branches on a size, makes a list of
it, or keeps a table of it. Normal runs never come here.

Shapes: B batch (or windows), h heads, N tokens, D head_dim, H x W token grid, k window side, C
anything behind a token.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .irpe.buckets import TokenGrid
from .irpe.dense import matmul_bias, one_hot_sides

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has none


def is_recording() -> bool:
    """Whether torch.export or torch.jit.trace is recording."""
    return torch.jit.is_tracing() or _is_exporting()


def recorded_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """SDPA spelled out: its memory layout depends on the kernel, and ONNX export fails over it."""
    logits = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    logits = logits if bias is None else logits + bias
    return logits.softmax(dim=-1) @ v


def recorded_rpe_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: TokenGrid, valid: Tensor | None = None
) -> Tensor:
    """`rpe_attention` by products of matrices.

    Args:
        q, k, v: (B, h, N, D).
        table: (D, K) lookup table of iRPE.
        valid: (B, N), True where a token takes part; all do by default.
    """
    # Nothing that belongs to a recording may stay in a cache.
    bias = matmul_bias(q, table, grid, sides=one_hot_sides)
    if valid is not None:
        bias = bias.masked_fill(~valid[:, None, None, :], float("-inf"))
    return recorded_attention(q, k, v, bias)


def map_padded_windows(x: Tensor, window_size: int, attend: Callable) -> Tensor:
    """`map_even_windows` without a decision that depends on the size.

    The windows are the same, but each is read into k x k places. Places that are left over hold
    tokens of the window a second time. ``attend`` must mask them, and the result drops them.

    Args:
        x: (B, H, W, C).
        attend: Maps (B * windows, k * k, C), the `TokenGrid` of a window, and ``valid``, a boolean
            (B * windows, k * k) that is True where a token takes part, to (B * windows, k * k, C').

    Returns:
        (B, H, W, C').
    """
    B, H, W, _ = x.shape
    k = window_size
    rows, row_valid, row_window, row_place = _padded_strips(H, k, x.device)
    columns, column_valid, column_window, column_place = _padded_strips(W, k, x.device)
    cells = x[:, rows][:, :, :, columns].transpose(2, 3)  # (B, rows, columns, k, k, C)
    valid = (row_valid[:, None, :, None] & column_valid[None, :, None, :]).expand(cells.shape[:5])
    valid = valid.flatten(3, 4).flatten(0, 2)
    out = attend(cells.flatten(3, 4).flatten(0, 2), TokenGrid(k, k), valid=valid)
    out = out.reshape(B, rows.shape[0], columns.shape[0], k, k, -1)
    out = out[:, row_window, :, row_place]  # (H, B, columns, k, C'): torch puts the index first
    return out[:, :, column_window, column_place].transpose(0, 1)


def _padded_strips(size, window_size: int, device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One side of a grid in the windows of `strips`, each in ``window_size`` places.

    Returns:
        tokens (windows, k), the token in every place; valid (windows, k), False where a place is
        left over; window and place (size,), where every token went.
    """
    count = (size + window_size - 1) // window_size
    side = size // count
    larger = size - side * count
    index = torch.arange(count, device=device)
    starts = index * side + index.clamp(max=larger)
    stops = starts + side + (index < larger)
    tokens = starts[:, None] + torch.arange(window_size, device=device)
    valid = tokens < stops[:, None]
    token = torch.arange(size, device=device)
    window = (token[:, None] >= stops).sum(dim=1)
    return torch.where(valid, tokens, starts[:, None]), valid, window, token - starts[window]
