"""Window partition of token grids.

Shapes: B batch, H x W token grid, C anything behind it, k window side.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .irpe.buckets import TokenGrid


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


def map_even_windows(x: Tensor, window_size: int, attend: Callable) -> Tensor:
    """Applies ``attend`` to all windows of a grid, without padding.

    Windows differ by one token at most (see `strips`), so that at most four calls serve any grid.

    Args:
        x: (B, H, W, C).
        attend: Maps (B * windows, height * width, C) and the `TokenGrid` of one window to
            (B * windows, height * width, C').

    Returns:
        (B, H, W, C').
    """
    H, W = x.shape[1:3]
    rows = []
    for row, height in strips(H, window_size):
        cells = []
        for column, width in strips(W, window_size):
            cell = x[:, row, column]
            out = attend(partition(cell, height, width), TokenGrid(height, width))
            cells.append(unpartition(out, height, width, *cell.shape[1:3]))
        rows.append(torch.cat(cells, dim=2))
    return torch.cat(rows, dim=1)
