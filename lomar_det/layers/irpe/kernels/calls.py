"""Launching the Triton kernels for iRPE attention: tile sizes, buffers, index tables.

Each of the four attention functions implements one operator that `fused.py` registers.

Shapes: B batch (or windows), h heads, N tokens, D head_dim, H x W patch grid, K buckets, XP x YP
the grid with sides padded to whole tiles.
"""

import contextlib
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..buckets import TokenGrid, distance_buckets
from .cls import cls_backward, cls_forward
from .grid import (
    LOG2E,
    ONE_HOT_COPIES,
    grid_backward_kv,
    grid_backward_q,
    grid_backward_table,
    grid_forward,
)
from .window import window_backward, window_forward, window_tables

# Launch settings: warps up to head_dim 64, warps above, stages. They are the fastest on an H100.
_WINDOW_FORWARD = (4, 4, 2)
_WINDOW_BACKWARD = (4, 8, 1)
_WINDOW_PROGRAMS = (2, 2)  # per multiprocessor, forward and backward
_GRID_FORWARD = (8, 8, 3)
_GRID_FORWARD_SMALL = (4, 8, 3)  # tiles of 64 queries
_GRID_BACKWARD_Q = (4, 8, 3)
_GRID_BACKWARD_KV = (4, 8, 3)
_GRID_BACKWARD_TABLE = (4, 4, 3)


@lru_cache(maxsize=16)
def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _on_device(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Makes the tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _launch(settings: tuple[int, int, int], q: Tensor) -> dict[str, int]:
    warps, warps_wide, stages = settings
    if q.dtype == torch.float32:  # needs smaller tiles, as it takes twice the shared memory
        return {"num_warps": 4, "num_stages": 2}
    return {"num_warps": warps if q.shape[3] <= 64 else warps_wide, "num_stages": stages}


def _same_layout(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copies q, k, v unless they have the same strides, of which the kernels take one set."""
    strides = q.stride()
    if strides[-1] == 1 and strides == k.stride() == v.stride():
        return q, k, v
    return q.contiguous(), k.contiguous(), v.contiguous()


def _rows_like(dout: Tensor) -> Tensor:
    """The gradient in the layout in which the output was returned: (B, N, h, D) in memory."""
    return dout.transpose(1, 2).contiguous().transpose(1, 2)


def empty_rows(q: Tensor) -> Tensor:
    """(B, h, N, D), laid out in memory as (B, N, h, D)."""
    B, h, N, D = q.shape
    return q.new_empty(B, N, h, D).transpose(1, 2)


# ------------------------------------------------------------------ windows of up to 64 tokens


def _window_meta(q: Tensor, table: Tensor) -> dict:
    D = q.shape[3]
    BN = max(16, triton.next_power_of_2(q.shape[2]))
    return {"K": table.shape[1], "D": D, "BD": triton.next_power_of_2(D), "BN": BN}


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, height: int, width: int, cls_token: bool
) -> Tensor:
    q, k, v = _same_layout(q, k, v)
    B, h, N, D = q.shape
    out = empty_rows(q)
    meta = _window_meta(q, table)
    grid = TokenGrid(height, width, cls_token)
    buckets, _, _ = window_tables(grid, meta["BN"], q.device, q.dtype)
    programs = min(B * h, _WINDOW_PROGRAMS[0] * _num_processors(q.device))
    with _on_device(q):
        window_forward[(programs,)](
            q, k, v, table.contiguous(), buckets, out, *q.stride()[:3], h, B * h, N, D**-0.5,
            **meta, **_launch(_WINDOW_FORWARD, q),
        )  # fmt: skip
    return out


def window_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, table: Tensor, height: int, width: int,
    cls_token: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v = _same_layout(q, k, v)
    B, h, N, D = q.shape
    dq, dk, dv = empty_rows(q), empty_rows(q), empty_rows(q)
    meta = _window_meta(q, table)
    grid = TokenGrid(height, width, cls_token)
    tables = window_tables(grid, meta["BN"], q.device, q.dtype)
    programs = min(B * h, _WINDOW_PROGRAMS[1] * _num_processors(q.device))
    dtable = q.new_empty(programs, *table.shape, dtype=torch.float32)
    with _on_device(q):
        window_backward[(programs,)](
            q, k, v, table.contiguous(), *tables, _rows_like(dout), dq, dk, dv, dtable,
            *q.stride()[:3], h, B * h, N, D**-0.5, **meta, **_launch(_WINDOW_BACKWARD, q),
        )  # fmt: skip
    return dq, dk, dv, dtable.sum(0).to(table.dtype)


# ------------------------------------------------------------------------------ larger grids


class _Tiles(NamedTuple):
    """How a grid is cut into tiles; see `grid.py`."""

    BY: int  # rows per chunk of a column
    BX: int  # columns per chunk of a row
    YP: int
    slots: int  # per-query numbers of one head: XP * YP, then some for the class token
    columns: int  # per query tile of the forward pass
    backward_columns: int  # per query tile of the backward pass
    rows: int  # per key tile of the backward pass


def _chunk(side: int, largest: int) -> int:
    """Tokens per tile along a side. A tile costs its tokens, with padding, and about four more."""
    sizes = [size for size in (64, 32, 16) if size <= largest]
    return min(sizes, key=lambda size: triton.cdiv(side, size) * (size + 4))


@lru_cache(maxsize=256)
def tiles_of(height: int, width: int, cls_token: bool, head_dim: int, dtype: torch.dtype) -> _Tiles:
    largest = 32 if dtype == torch.float32 else 64  # float32 needs more registers: no tensor cores
    BY, BX = _chunk(height, largest), _chunk(width, largest)
    YP = triton.cdiv(height, BY) * BY
    slots = triton.cdiv(width, 4) * 4 * YP + 16 * cls_token  # 16 keeps every head aligned
    queries = 128 if dtype != torch.float32 else 64
    columns = min(4, queries // BY)
    return _Tiles(BY, BX, YP, slots, columns, min(4, 64 // BY), min(4, 64 // BX))


def _block(side: int) -> int:
    return max(16, 8 * side)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _one_hot_distances(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(copies, distances, 8): one-hot 1-D buckets, distance 0 in the middle, for whole tiles."""
    reach = triton.cdiv(width, 64) * 64
    buckets = torch.tensor(distance_buckets(reach))
    one_hot = torch.nn.functional.one_hot(buckets, 8).to(dtype)
    return one_hot.expand(ONE_HOT_COPIES.value, -1, -1).contiguous().to(device)


def _query_meta(tiles: _Tiles, q: Tensor, table: Tensor, grid: TokenGrid, columns: int) -> dict:
    D = q.shape[3]
    return {
        "K": table.shape[1],
        "D": D,
        "BD": triton.next_power_of_2(D),
        "CLS": int(grid.cls_token),
        "QC": columns,
        "BY": tiles.BY,
        "BX": tiles.BX,
        "BK": _block(columns),
        "X_CHUNKS": triton.cdiv(grid.width, tiles.BX),
        "EVEN_X": grid.width % tiles.BX == 0,
    }


def grid_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, height: int, width: int, cls_token: bool
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _same_layout(q, k, v)
    B, h, N, D = q.shape
    grid = TokenGrid(height, width, cls_token)
    tiles = tiles_of(height, width, cls_token, D, q.dtype)
    out, lookup, lse = grid_outputs(q, tiles)
    meta = _query_meta(tiles, q, table, grid, tiles.columns)
    programs = B * h * triton.cdiv(width, tiles.columns) * (tiles.YP // tiles.BY)
    one_hot = _one_hot_distances(width, q.device, q.dtype)
    scale = LOG2E.value * D**-0.5
    settings = _GRID_FORWARD if tiles.columns * tiles.BY > 64 else _GRID_FORWARD_SMALL
    with _on_device(q):
        grid_forward[(programs,)](
            q, k, v, table.contiguous(), out, lookup, lse, one_hot,
            *q.stride()[:3], h, height, width, tiles.YP, tiles.slots, scale, D**0.5,
            one_hot.shape[1] // 2,
            **meta, **_launch(settings, q),
        )  # fmt: skip
        if cls_token:
            cls_forward[(B * h,)](
                q, k, v, out, lse, *q.stride()[:3], h, N, tiles.slots, scale,
                D=D, BD=triton.next_power_of_2(D), BT=32, num_warps=4,
            )  # fmt: skip
    return out, lookup, lse


def grid_outputs(q: Tensor, tiles: _Tiles) -> tuple[Tensor, Tensor, Tensor]:
    heads = q.shape[0] * q.shape[1]
    lookup = q.new_empty(heads, tiles.slots, 64)
    return empty_rows(q), lookup, q.new_empty(heads, tiles.slots, dtype=torch.float32)


def grid_attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, table: Tensor, out: Tensor, lookup: Tensor,
    lse: Tensor, height: int, width: int, cls_token: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v = _same_layout(q, k, v)
    dout = _rows_like(dout)
    B, h, N, D = q.shape
    grid = TokenGrid(height, width, cls_token)
    tiles = tiles_of(height, width, cls_token, D, q.dtype)
    meta = _query_meta(tiles, q, table, grid, tiles.backward_columns)
    dq, dk, dv = empty_rows(q), empty_rows(q), empty_rows(q)
    dlookup, delta = torch.empty_like(lookup), torch.empty_like(lse)
    tiles_per_head = triton.cdiv(width, tiles.backward_columns) * (tiles.YP // tiles.BY)
    programs = B * h * tiles_per_head
    table_programs = min(programs, 2 * _num_processors(q.device))
    dtable = lse.new_empty(table_programs, *table.shape)
    dcls = lse.new_empty(programs if cls_token else 0, 2, D)
    strides = q.stride()[:3]
    scale = LOG2E.value * D**-0.5
    one_hot = _one_hot_distances(width, q.device, q.dtype)
    with _on_device(q):
        grid_backward_q[(programs,)](
            q, k, v, table.contiguous(), out, lookup, lse, dout, one_hot,
            dq, dlookup, delta, dcls,
            *strides, h, height, width, tiles.YP, tiles.slots, scale, D**0.5,
            one_hot.shape[1] // 2,
            **meta, **_launch(_GRID_BACKWARD_Q, q),
        )  # fmt: skip
        query_tile = {name: meta[name] for name in ("K", "D", "BD", "CLS", "QC", "BY")}
        grid_backward_table[(table_programs,)](
            q, dlookup, dcls, dtable,
            *strides, h, height, width, tiles.YP, tiles.slots, programs,
            **query_tile, **_launch(_GRID_BACKWARD_TABLE, q),
        )  # fmt: skip
        if cls_token:
            cls_backward[(B * h,)](
                q, k, v, out, lse, dout, delta, dcls, dq, dk, dv,
                *strides, h, N, tiles.slots, tiles_per_head, scale,
                D=D, BD=meta["BD"], BT=32, num_warps=4,
            )  # fmt: skip
        grid_backward_kv[(B * h * triton.cdiv(height, tiles.rows) * meta["X_CHUNKS"],)](
            q, k, v, lookup, lse, dout, delta, one_hot, dk, dv,
            *strides, h, height, width, tiles.YP, tiles.slots, scale, one_hot.shape[1] // 2,
            D=D, BD=meta["BD"], CLS=meta["CLS"], KR=tiles.rows, BX=tiles.BX, BY=tiles.BY,
            BK=_block(tiles.rows), X_CHUNKS=meta["X_CHUNKS"], Y_CHUNKS=tiles.YP // tiles.BY,
            **_launch(_GRID_BACKWARD_KV, q),
        )  # fmt: skip
    return dq, dk, dv, dtable.sum(0).to(table.dtype)
