"""Triton kernels: the class token of a grid; `grid.py` attends to the patches.

As a query, the class token sees all tokens under one bucket. Softmax cancels such a constant bias,
so this is plain attention of a single row, with one program per batch entry and head. As a key, the
class token is part of the kernels of `grid.py`. They write one part of its gradient per query tile,
and the backward kernel here adds the parts up.

Shapes: BH batch * heads, N tokens, D head_dim (BD the next power of two), BT tokens per step.
"""

import triton
import triton.language as tl

from .grid import LOG2E


@triton.jit
def cls_forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr,
    stride_b, stride_h, stride_n, heads, N, slots, scale,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Token 0 of out (B, N, h, D), and its logsumexp in the last slot of lse (BH, slots)."""
    bh = tl.program_id(0)
    b, h = (bh // heads).to(tl.int64), bh % heads
    d, t = tl.arange(0, BD), tl.arange(0, BT)
    start = b * stride_b + h * stride_h
    q = tl.load(q_ptr + start + d, mask=d < D, other=0.0).to(tl.float32)
    highest = tl.full((BT,), float("-inf"), tl.float32)  # one softmax per lane, merged at the end
    total = tl.zeros((BT,), tl.float32)
    acc = tl.zeros((BT, BD), tl.float32)
    for first in tl.range(0, N, BT):
        token = first + t
        inside = (token < N)[:, None] & (d < D)[None, :]
        offsets = start + token[:, None] * stride_n + d[None, :]
        k = tl.load(k_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        s = tl.sum(k * q[None, :], 1) * scale
        s = tl.where(token < N, s, -1e30)  # finite, because a lane may see no token
        higher = tl.maximum(highest, s)
        p = tl.where(token < N, tl.exp2(s - higher), 0.0)
        rescale = tl.exp2(highest - higher)
        total = total * rescale + p
        acc = acc * rescale[:, None] + p[:, None] * v
        highest = higher
    top = tl.max(highest, 0)
    weight = tl.exp2(highest - top)
    total = tl.sum(total * weight, 0)
    out = tl.sum(acc * weight[:, None], 0) / total
    out_ptrs = out_ptr + (b * N * heads + h) * D + d
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=d < D)
    tl.store(lse_ptr + (bh.to(tl.int64) + 1) * slots - 1, top + tl.log2(total))


@triton.jit
def cls_backward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, dout_ptr, delta_ptr, dcls_ptr, dq_ptr, dk_ptr, dv_ptr,
    stride_b, stride_h, stride_n, heads, N, slots, tiles, scale,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Token 0 of dq, dk and dv, and its delta; dcls (BH * tiles, 2, D): parts of dk and dv."""
    bh = tl.program_id(0)
    b, h = (bh // heads).to(tl.int64), bh % heads
    d, t = tl.arange(0, BD), tl.arange(0, BT)
    in_d = d < D
    start = b * stride_b + h * stride_h
    cls_offsets = (b * N * heads + h) * D + d
    q = tl.load(q_ptr + start + d, mask=in_d, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + cls_offsets, mask=in_d, other=0.0).to(tl.float32)
    dout = tl.load(dout_ptr + cls_offsets, mask=in_d, other=0.0).to(tl.float32)
    delta = tl.sum(out * dout, 0)
    last_slot = (bh.to(tl.int64) + 1) * slots - 1
    tl.store(delta_ptr + last_slot, delta)
    lse = tl.load(lse_ptr + last_slot)
    dq = tl.zeros((BT, BD), tl.float32)
    p_self = 0.0
    ds_self = 0.0
    for first in tl.range(0, N, BT):
        token = first + t
        inside = (token < N)[:, None] & in_d[None, :]
        offsets = start + token[:, None] * stride_n + d[None, :]
        k = tl.load(k_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(v_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        p = tl.exp2(tl.sum(k * q[None, :], 1) * scale - lse)
        p = tl.where(token < N, p, 0.0)
        ds = p * (tl.sum(v * dout[None, :], 1) - delta)
        dq += ds[:, None] * k
        p_self += tl.sum(tl.where(token == 0, p, 0.0), 0)
        ds_self += tl.sum(tl.where(token == 0, ds, 0.0), 0)
    dk = tl.zeros((BT, BD), tl.float32)
    dv = tl.zeros((BT, BD), tl.float32)
    for first in tl.range(0, tiles, BT):
        tile = (bh.to(tl.int64) * tiles + first + t)[:, None] * 2 * D
        inside = (first + t < tiles)[:, None] & in_d[None, :]
        dk += tl.load(dcls_ptr + tile + d[None, :], mask=inside, other=0.0)
        dv += tl.load(dcls_ptr + tile + D + d[None, :], mask=inside, other=0.0)
    dtype = dq_ptr.dtype.element_ty
    scale = scale / LOG2E
    tl.store(dq_ptr + cls_offsets, (tl.sum(dq, 0) * scale).to(dtype), mask=in_d)
    dk_cls = (tl.sum(dk, 0) + ds_self * q) * scale
    tl.store(dk_ptr + cls_offsets, dk_cls.to(dtype), mask=in_d)
    tl.store(dv_ptr + cls_offsets, (tl.sum(dv, 0) + p_self * dout).to(dtype), mask=in_d)
