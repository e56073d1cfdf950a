"""Window partition of token grids.

Shapes: B batch, H x W token grid, C anything behind it, k window side.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def partition(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) with H, W multiples of the window -> (B * windows, height * width, C)."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // height, height, W // width, width, C)
    return x.transpose(2, 3).reshape(-1, height * width, C)


def unpartition(windows: Tensor, height: int, width: int, H: int, W: int) -> Tensor:
    """Inverse of `partition`: (B * windows, height * width, C) -> (B, H, W, C)."""
    x = windows.reshape(-1, H // height, W // width, height, width, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, H, W, windows.shape[-1])


def pad_to_windows(x: Tensor, window_size: int) -> Tensor:
    """(B, H, W, C) -> the same with zero tokens at the bottom and right, H and W multiples."""
    pad_h, pad_w = -x.shape[1] % window_size, -x.shape[2] % window_size
    return F.pad(x, (0, 0, 0, pad_w, 0, pad_h)) if pad_h or pad_w else x


def strips(size: int, window_size: int) -> Iterator[tuple[slice, int]]:
    """One side of a grid in windows as equal as possible: (slice, window side) of each strip.

    As few windows as ``window_size`` allows; the first strip holds those that are one token larger.
    64 tokens in windows of at most 14 are four of 13 and one of 12, not four of 14 and one of 8.
    """
    count = -(-size // window_size)
    side, larger = divmod(size, count)
    edge = larger * (side + 1)
    if larger:
        yield slice(0, edge), side + 1
    yield slice(edge, size), side


def map_even_windows(x: Tensor, window_size: int, attend) -> Tensor:
    """Applies ``attend(windows, height, width)`` to all windows of a grid, without padding.

    Windows differ by one token at most (see `strips`), so that at most four calls serve any grid.

    Args:
        x: (B, H, W, C).
        attend: Maps (B * windows, height * width, C) to (B * windows, height * width, C').

    Returns:
        (B, H, W, C').
    """
    H, W = x.shape[1:3]
    rows = []
    for row, height in strips(H, window_size):
        cells = []
        for column, width in strips(W, window_size):
            cell = x[:, row, column]
            out = attend(partition(cell, height, width), height, width)
            cells.append(unpartition(out, height, width, *cell.shape[1:3]))
        rows.append(torch.cat(cells, dim=2))
    return torch.cat(rows, dim=1)


def map_padded_windows(x: Tensor, window_size: int, attend) -> Tensor:
    """`map_even_windows` without a decision that depends on the size: for recorded graphs.

    The same windows, but each is read into ``window_size`` x ``window_size`` places; what is left
    over holds other tokens of the window again, which ``attend`` must mask, and is dropped.

    Args:
        x: (B, H, W, C); sizes may be symbols of torch.export or tensors of torch.jit.trace.
        attend: Maps (B * windows, k * k, C) and a boolean (B * windows, k * k), True where a token
            takes part, to (B * windows, k * k, C').

    Returns:
        (B, H, W, C').
    """
    B, H, W, _ = x.shape
    k = window_size
    rows, row_valid, row_window, row_place = _padded_strips(H, k, x.device)
    columns, column_valid, column_window, column_place = _padded_strips(W, k, x.device)
    cells = x[:, rows][:, :, :, columns].transpose(2, 3)  # (B, rows, columns, k, k, C)
    valid = (row_valid[:, None, :, None] & column_valid[None, :, None, :]).expand(cells.shape[:5])
    out = attend(cells.flatten(3, 4).flatten(0, 2), valid.flatten(3, 4).flatten(0, 2))
    out = out.reshape(B, rows.shape[0], columns.shape[0], k, k, -1)
    out = out[:, row_window, :, row_place]  # (H, B, columns, k, C'): torch puts the index first
    return out[:, :, column_window, column_place].transpose(0, 1)


def _padded_strips(size, window_size: int, device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One side of a grid in the windows of `strips`, each in ``window_size`` places.

    Returns:
        tokens (windows, k), the token of every place; valid (windows, k), whether it is its own;
        window and place (size,), where every token went.
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
