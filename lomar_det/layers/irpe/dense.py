"""Attention with iRPE by the whole N x N bias: the literal formula, and as matrix products.

Shapes: B batch (or windows), h heads, N tokens, D head_dim, H x W patch grid, K buckets.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .buckets import (
    CLS_BUCKET,
    NUM_SIDE_BUCKETS,
    NUM_SPATIAL_BUCKETS,
    TokenGrid,
    side_buckets,
)


def indexed_rpe_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, buckets: Tensor
) -> Tensor:
    """The literal formula, for any buckets: (N, N), or (B, N, N) for subsets of a grid."""
    logits = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5  # (B, h, N, N)
    lookup = q @ table.to(q.dtype)  # (B, h, N, K)
    index = buckets if buckets.dim() == 2 else buckets[:, None]
    logits = logits + lookup.gather(-1, index.expand(logits.shape))
    # Half precision loses the tail of a long row, so softmax runs in fp32 at least.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.softmax(dim=-1, dtype=dtype).to(v.dtype) @ v


def one_hot_sides(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(size, 7, size): for a query coordinate, the one-hot bucket of every key coordinate."""
    one_hot = F.one_hot(side_buckets(size), NUM_SIDE_BUCKETS).transpose(1, 2)
    return one_hot.to(device, dtype).contiguous()


# Training must be able to use a table that inference made.
cached_one_hot_sides = lru_cache(maxsize=64)(torch.inference_mode(False)(one_hot_sides))


def matmul_bias(
    q: Tensor,
    table: Tensor,
    grid: TokenGrid,
    sides: Callable[..., Tensor] = cached_one_hot_sides,
) -> Tensor:
    """The whole (B, h, N, N) bias q . R[bucket], by products with one-hot matrices.

    The buckets are a product of a row and a column bucket, so the bias is T[r][c] with T = q @ R:
    select by row first, then by column. Selecting by a one-hot product costs few FLOPs (7 terms)
    and has products as its gradients, where a gather has a slow scatter-add.

    Args:
        sides: Makes the one-hot matrices: `one_hot_sides` where sizes may be symbols.
    """
    B, h, N, D = q.shape
    H, W = grid.height, grid.width
    start = int(grid.cls_token)
    lookup = q @ table.to(q.dtype)  # (B, h, N, K)
    T = lookup[:, :, start:, :NUM_SPATIAL_BUCKETS].reshape(B, h, H, W, 7, 7)  # y x row col
    rows = sides(H, q.device, q.dtype)  # (H, 7, H)
    columns = sides(W, q.device, q.dtype)  # (W, 7, W)
    bias = torch.einsum("bhyxrc,yrk->bhyxkc", T, rows)  # k: key row
    bias = torch.einsum("bhyxkc,xcl->bhyxkl", bias, columns)  # l: key column
    bias = bias.reshape(B, h, H * W, H * W)
    if not grid.cls_token:
        return bias
    cls_bias = lookup[..., CLS_BUCKET:]  # (B, h, N, 1): the same for every key paired with cls
    bias = torch.cat([cls_bias[:, :, 1:], bias], dim=3)
    return torch.cat([cls_bias[:, :, :1].expand(B, h, 1, N), bias], dim=2)
