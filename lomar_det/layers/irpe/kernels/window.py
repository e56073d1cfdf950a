"""Triton kernels: iRPE attention in windows of up to 64 tokens, one window and head at a time.

A whole window fits one program. Softmax needs no second pass, backward recomputes everything from
q, k and v, and the bias is a gather inside the program: bias[i, j] = T[i, bucket(i, j)] with
T = q @ R.

The gradient of a gather is a scatter, which Triton has only as atomics. But the keys of one bucket
form a rectangle of the window. A sum over a rectangle takes four corners of a table of 2-D prefix
sums, and one product of dS with a constant 0/1 matrix makes that table.

Programs are persistent: each serves many windows. It reads R and the prefix matrix once, and adds
up the gradient of R in registers, in an order that never changes. It reads the indices of the
gathers again for every window, because keeping them in registers makes other values spill.

Shapes: N tokens, BN the next power of two, D head_dim, BD likewise, K buckets in the table (padded
to 64).
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..buckets import NUM_SIDE_BUCKETS, TokenGrid, bucket_table, side_buckets
from .common import PRECISION

OUTSIDE = 64  # stands for the zeros outside the window in the table of prefix sums


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def window_tables(
    grid: TokenGrid, side: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Index tables of a window, padded to ``side`` = BN tokens.

    Returns:
        buckets (BN, BN) int32: the bucket of every pair.
        corners (BN, 64) int32: four token indices, one byte each, for every query and bucket. The
            sum of dS over the keys in the bucket is the prefix sums at the first two minus those
            at the last two.
        prefix (BN, BN): 1 where a token (row) counts in the prefix sum of another (column).
    """
    H, W, N = grid.height, grid.width, grid.num_tokens
    start = int(grid.cls_token)
    buckets = torch.zeros(side, side, dtype=torch.int32)
    buckets[:N, :N] = bucket_table(grid)

    corners = torch.full((side, 64, 4), OUTSIDE, dtype=torch.int32)
    rows, columns = side_buckets(H).tolist(), side_buckets(W).tolist()
    for token in range(start, N):
        y, x = divmod(token - start, W)
        for bucket in range(NUM_SIDE_BUCKETS**2):
            r, c = divmod(bucket, NUM_SIDE_BUCKETS)
            ys = [j for j in range(H) if rows[y][j] == r]
            xs = [j for j in range(W) if columns[x][j] == c]
            if ys and xs:
                (top, bottom), (left, right) = (ys[0] - 1, ys[-1]), (xs[0] - 1, xs[-1])
                ends = (bottom, right), (top, left), (top, right), (bottom, left)
                for i, (j, k) in enumerate(ends):
                    if j >= 0 and k >= 0:
                        corners[token, bucket, i] = start + j * W + k
        if grid.cls_token:
            corners[token, NUM_SIDE_BUCKETS**2, 0] = 0
    # For the class token as a query, every key is in one bucket. Softmax cancels such a constant,
    # so the gradient of that bucket is zero, and its corners stay outside.
    packed = (corners << torch.tensor([0, 8, 16, 24], dtype=torch.int32)).sum(-1, dtype=torch.int32)

    prefix = torch.zeros(side, side)
    y, x = torch.arange(H * W) // W, torch.arange(H * W) % W
    prefix[start:N, start:N] = ((y[:, None] <= y) & (x[:, None] <= x)).float()
    if grid.cls_token:
        prefix[0, 0] = 1
    return buckets.to(device), packed.to(device), prefix.to(device, dtype)


@triton.jit
def _take(sums, packed, SHIFT: tl.constexpr):
    index = (packed >> SHIFT) & 127
    return tl.where(index < 64, tl.gather(sums, index & (sums.shape[1] - 1), 1), 0.0)


@triton.jit
def window_forward(
    q_ptr, k_ptr, v_ptr, table_ptr, buckets_ptr, out_ptr,
    stride_b, stride_h, stride_n, heads, total, N, scale,
    K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Reads q, k, v (B, h, N, D) with any strides, writes out, as (B, N, h, D)."""
    token, d, column = tl.arange(0, BN), tl.arange(0, BD), tl.arange(0, 64)
    table = tl.load(
        table_ptr + d[:, None] * K + column[None, :],
        mask=(d < D)[:, None] & (column < K)[None, :],
        other=0.0,
    ).to(q_ptr.dtype.element_ty)  # (BD, 64)
    inside = (token < N)[:, None] & (d < D)[None, :]
    for index in tl.range(tl.program_id(0), total, tl.num_programs(0)):
        b, h = (index // heads).to(tl.int64), index % heads
        start = b * stride_b + h * stride_h
        offsets = token[:, None] * stride_n + d[None, :]
        q = tl.load(q_ptr + start + offsets, mask=inside, other=0.0)
        k = tl.load(k_ptr + start + offsets, mask=inside, other=0.0)
        v = tl.load(v_ptr + start + offsets, mask=inside, other=0.0)
        buckets = tl.load(buckets_ptr + token[:, None] * BN + token[None, :])  # (BN, BN)
        lookup = tl.dot(q, table, input_precision=PRECISION)  # (BN, 64)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        logits += tl.gather(lookup, buckets, 1)
        logits = tl.where((token < N)[None, :], logits, float("-inf"))
        p = tl.exp(logits - tl.max(logits, 1)[:, None])
        total_p = tl.sum(p, 1)
        out = tl.dot(p.to(v.dtype), v, input_precision=PRECISION) / total_p[:, None]
        out_ptrs = out_ptr + (b * N * heads + h) * D + token[:, None] * (heads * D) + d[None, :]
        tl.store(out_ptrs, out.to(v.dtype), mask=inside)


@triton.jit
def window_backward(
    q_ptr, k_ptr, v_ptr, table_ptr, buckets_ptr, corners_ptr, prefix_ptr, dout_ptr,
    dq_ptr, dk_ptr, dv_ptr, dtable_ptr,
    stride_b, stride_h, stride_n, heads, total, N, scale,
    K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """All four gradients; dtable (programs, D, K) is one partial sum per program."""
    token, d, column = tl.arange(0, BN), tl.arange(0, BD), tl.arange(0, 64)
    dtype = q_ptr.dtype.element_ty
    prefix = tl.load(prefix_ptr + token[:, None] * BN + token[None, :])  # (BN, BN)
    table_offsets = d[:, None] * K + column[None, :]
    in_table = (d < D)[:, None] & (column < K)[None, :]
    table = tl.load(table_ptr + table_offsets, mask=in_table, other=0.0).to(dtype)  # (BD, 64)
    dtable = tl.zeros((BD, 64), tl.float32)
    inside = (token < N)[:, None] & (d < D)[None, :]
    for index in tl.range(tl.program_id(0), total, tl.num_programs(0)):
        b, h = (index // heads).to(tl.int64), index % heads
        start = b * stride_b + h * stride_h
        offsets = token[:, None] * stride_n + d[None, :]
        out_start = (b * N * heads + h) * D
        out_offsets = token[:, None] * (heads * D) + d[None, :]
        q = tl.load(q_ptr + start + offsets, mask=inside, other=0.0)
        k = tl.load(k_ptr + start + offsets, mask=inside, other=0.0)
        v = tl.load(v_ptr + start + offsets, mask=inside, other=0.0)
        dout = tl.load(dout_ptr + out_start + out_offsets, mask=inside, other=0.0)
        buckets = tl.load(buckets_ptr + token[:, None] * BN + token[None, :])  # (BN, BN)
        lookup = tl.dot(q, table, input_precision=PRECISION)  # (BN, 64)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        logits += tl.gather(lookup, buckets, 1)
        logits = tl.where((token < N)[None, :], logits, float("-inf"))
        p = tl.exp(logits - tl.max(logits, 1)[:, None])
        p = p / tl.sum(p, 1)[:, None]
        dv = tl.dot(tl.trans(p.to(dtype)), dout, input_precision=PRECISION)
        tl.store(dv_ptr + out_start + out_offsets, dv.to(dtype), mask=inside)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        ds = (p * (dp - tl.sum(p * dp, 1)[:, None])).to(dtype)  # (BN, BN)
        dk = tl.dot(tl.trans(ds), q, input_precision=PRECISION) * scale
        tl.store(dk_ptr + out_start + out_offsets, dk.to(dtype), mask=inside)
        sums = tl.dot(ds, prefix, input_precision=PRECISION)  # (BN, BN)
        corners = tl.load(corners_ptr + token[:, None] * 64 + column[None, :])  # (BN, 64)
        dlookup = _take(sums, corners, 0) + _take(sums, corners, 8)
        dlookup -= _take(sums, corners, 16) + _take(sums, corners, 24)
        dlookup = dlookup.to(dtype)  # (BN, 64)
        dtable = tl.dot(tl.trans(q), dlookup, acc=dtable, input_precision=PRECISION)
        dq = tl.dot(ds, k, input_precision=PRECISION) * scale
        dq = tl.dot(dlookup, tl.trans(table), acc=dq, input_precision=PRECISION)
        tl.store(dq_ptr + out_start + out_offsets, dq.to(dtype), mask=inside)
    dtable_ptr += tl.program_id(0) * D * K
    tl.store(dtable_ptr + table_offsets, dtable, mask=in_table)
