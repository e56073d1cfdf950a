"""Triton kernels: iRPE attention over a whole grid of tokens, exact, in linear memory.

Usual code gathers an N x N bias per head. Here the tiles have a bias of rank 7 at most. A query
tile is one image *column* (x_i fixed), a key tile one image *row* (y_j fixed). The bucket of a pair
is a row bucket r(y_i - y_j) and a column bucket c(x_i - x_j), so in such a tile r depends on the
query alone and c on the key alone:

    bias[i, j] = T[i, r(y_i - y_j), c(x_i - x_j)] = (T[i, r_i, :] @ one_hot)[j],      T = q @ R

where T[i, r_i, :] is one contiguous load per query and one_hot (8 x keys) a constant of the tile.
The bias is then one more step of K = 16 in the tensor-core product of q and k. Several columns (or
rows) share a tile, each with its own block of 8 along K.

The gradient of T is dS @ one_hot^T, added up per query while key rows go by. As y_j rises, the row
bucket of a query only falls, so each of its sums is stored once, when the bucket changes. Nothing
needs atomics.

Where there is a class token, every patch attends to it with the bias T[i, 49]; the running softmax
starts with that logit. The row of logits of the class token itself is shifted by a constant, which
softmax cancels. See `cls.py`.

``one_hot`` comes from a small table (distances, 8) of the column bucket of every distance; its row
``x_zero`` is distance 0. Building it in registers would serialise the tensor cores. The table has
many copies, because all programs reading the same few cache lines took half the run time.

Shapes: BH batch * heads, N tokens, D head_dim (BD the next power of two), K buckets in the table,
H x W grid, XP x YP the grid with sides padded to whole tiles; QC columns of BY queries per tile,
or KR rows of BX keys; BK = 8 * QC or 8 * KR, at least 16. Buffers of numbers per query, such as
the logsumexp, are (BH, slots), column after column (x * YP + y), so that tiles are contiguous.
"""

import triton
import triton.language as tl

from .common import CLS_COLUMN, PRECISION, bucket_of

LOG2E = tl.constexpr(1.4426950408889634)
ONE_HOT_COPIES = tl.constexpr(128)


@triton.jit
def _load_lookup_table(table_ptr, dtype, K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """(BD, 64): R with its 7 x 7 buckets laid out as 8 x 8; the rest is zero."""
    d, column = tl.arange(0, BD)[:, None], tl.arange(0, 64)[None, :]
    spatial = (column // 8 < 7) & (column % 8 < 7)
    source = column // 8 * 7 + column % 8
    return tl.load(table_ptr + d * K + source, mask=(d < D) & spatial, other=0.0).to(dtype)


@triton.jit
def _one_hot_copy(x_zero):
    """Offset of the copy of the one-hot table that this program reads."""
    return tl.program_id(0) % ONE_HOT_COPIES * ((2 * x_zero + 1) * 8)


@triton.jit
def _tile_of_queries(program, W, YP, QC: tl.constexpr, BY: tl.constexpr):
    """Batch * heads index, first column, and the queries' coordinates, (QC * BY,), of a tile."""
    columns, chunks = tl.cdiv(W, QC), YP // BY
    tile = program % (columns * chunks)
    m = tl.arange(0, QC * BY)
    x_first = tile // chunks * QC
    return program // (columns * chunks), x_first, x_first + m // BY, tile % chunks * BY + m % BY


@triton.jit
def _stored_buckets(y, H):
    """(queries, 64) bool: the buckets of the 8 x 8 layout that some key may have for a query."""
    column = tl.arange(0, 64)[None, :]
    first, last = bucket_of(y - H + 1)[:, None], bucket_of(y)[:, None]
    return (column // 8 >= first) & (column // 8 <= last) & (column % 8 < 7)


@triton.jit
def grid_forward(
    q_ptr, k_ptr, v_ptr, table_ptr, out_ptr, lookup_ptr, lse_ptr, one_hot_ptr,
    stride_b, stride_h, stride_n, heads, H, W, YP, slots, scale, root, x_zero,
    K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, CLS: tl.constexpr,
    QC: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, BK: tl.constexpr,
    X_CHUNKS: tl.constexpr, EVEN_X: tl.constexpr,
):  # fmt: skip
    """One query tile: out (B, N, h, D), lse (BH, slots), base 2, and lookup (BH, slots, 64).

    ``lookup`` is T * sqrt(D), so that one factor, ``scale`` = log2(e) / sqrt(D), serves both terms.
    """
    bh, x_first, x, y = _tile_of_queries(tl.program_id(0), W, YP, QC, BY)
    b, h = (bh // heads).to(tl.int64), bh % heads
    d, kk = tl.arange(0, BD), tl.arange(0, BK)
    q_ptr += b * stride_b + h * stride_h
    k_ptr += b * stride_b + h * stride_h
    v_ptr += b * stride_b + h * stride_h
    lookup_ptr += bh.to(tl.int64) * slots * 64
    slot = x * YP + y
    token = y * W + x + CLS
    inside = ((x < W) & (y < H))[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + token[:, None] * stride_n + d[None, :], mask=inside, other=0.0)
    table = _load_lookup_table(table_ptr, q.dtype, K, D, BD)
    lookup = (tl.dot(q, table, input_precision=PRECISION) * root).to(q.dtype)
    tl.store(lookup_ptr + slot[:, None] * 64 + tl.arange(0, 64)[None, :], lookup)
    tl.debug_barrier()  # the loop reads what other threads of this program have just written

    if CLS:
        k_cls = tl.load(k_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        v_cls = tl.load(v_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        r_cls = tl.load(table_ptr + d * K + CLS_COLUMN, mask=d < D, other=0.0).to(tl.float32)
        m_i = tl.sum(q.to(tl.float32) * (k_cls + r_cls * root)[None, :], 1) * scale
        l_i = tl.full((QC * BY,), 1.0, tl.float32)
        acc = tl.zeros((QC * BY, BD), tl.float32) + v_cls[None, :]
    else:
        m_i = tl.full((QC * BY,), float("-inf"), tl.float32)
        l_i = tl.zeros((QC * BY,), tl.float32)
        acc = tl.zeros((QC * BY, BD), tl.float32)

    own_block = (tl.arange(0, QC * BY) // BY)[:, None] == (kk // 8)[None, :]
    lookup_ptrs = lookup_ptr + slot[:, None] * 64 + (kk % 8)[None, :]
    x_key = tl.arange(0, BX)
    one_hot_ptr += _one_hot_copy(x_zero) + (x_zero + x_first) * 8
    one_hot_offsets = (kk[None, :] // 8 - x_key[:, None]) * 8 + kk[None, :] % 8
    one_hot = tl.load(one_hot_ptr + one_hot_offsets)  # (BX, BK)
    key_offsets = (x_key + CLS)[:, None] * stride_n + d[None, :]
    for step in tl.range(0, H * X_CHUNKS):
        y_key = step // X_CHUNKS
        if X_CHUNKS > 1:
            x_key = step % X_CHUNKS * BX + tl.arange(0, BX)
            one_hot = tl.load(one_hot_ptr + one_hot_offsets - step % X_CHUNKS * BX * 8)
        row_start = (y_key * W + step % X_CHUNKS * BX) * stride_n
        in_keys = (x_key < W)[:, None] & (d < D)[None, :]
        k = tl.load(k_ptr + row_start + key_offsets, mask=in_keys, other=0.0)  # (BX, BD)
        v = tl.load(v_ptr + row_start + key_offsets, mask=in_keys, other=0.0)
        rows = bucket_of(y - y_key) * 8
        selected = tl.load(lookup_ptrs + rows[:, None], mask=own_block, other=0.0)  # (.., BK)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s = tl.dot(selected, tl.trans(one_hot), acc=s, input_precision=PRECISION) * scale
        if not EVEN_X:
            s = tl.where((x_key < W)[None, :], s, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        rescale = tl.exp2(m_i - m_new)
        l_i = l_i * rescale + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc=acc * rescale[:, None], input_precision=PRECISION)
        m_i = m_new

    out_ptr += (b * (H * W + CLS) * heads + h) * D
    out_offsets = token[:, None] * (heads * D) + d[None, :]
    tl.store(out_ptr + out_offsets, (acc / l_i[:, None]).to(q.dtype), mask=inside)
    # Padding gets +inf, so that p = 0 there in backward, without masks.
    lse = tl.where((x < W) & (y < H), m_i + tl.log2(l_i), float("inf"))
    tl.store(lse_ptr + bh.to(tl.int64) * slots + slot, lse)


@triton.jit
def grid_backward_q(
    q_ptr, k_ptr, v_ptr, table_ptr, out_ptr, lookup_ptr, lse_ptr, dout_ptr, one_hot_ptr,
    dq_ptr, dlookup_ptr, delta_ptr, dcls_ptr,
    stride_b, stride_h, stride_n, heads, H, W, YP, slots, scale, root, x_zero,
    K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, CLS: tl.constexpr,
    QC: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, BK: tl.constexpr,
    X_CHUNKS: tl.constexpr, EVEN_X: tl.constexpr,
):  # fmt: skip
    """One query tile: dq (B, N, h, D), delta (BH, slots) and dlookup (BH, slots, 64).

    Buckets of ``dlookup`` that no key has are not written. With a class token: dcls (2, D), the
    tile's part of the gradients of that token's key (unscaled) and value.
    """
    bh, x_first, x, y = _tile_of_queries(tl.program_id(0), W, YP, QC, BY)
    b, h = (bh // heads).to(tl.int64), bh % heads
    d, kk = tl.arange(0, BD), tl.arange(0, BK)
    q_ptr += b * stride_b + h * stride_h
    k_ptr += b * stride_b + h * stride_h
    v_ptr += b * stride_b + h * stride_h
    out_start = (b * (H * W + CLS) * heads + h) * D
    lookup_ptr += bh.to(tl.int64) * slots * 64
    dlookup_ptr += bh.to(tl.int64) * slots * 64
    slot = x * YP + y
    token = y * W + x + CLS
    inside = ((x < W) & (y < H))[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + token[:, None] * stride_n + d[None, :], mask=inside, other=0.0)
    out_offsets = token[:, None] * (heads * D) + d[None, :]
    dout = tl.load(dout_ptr + out_start + out_offsets, mask=inside, other=0.0)
    out = tl.load(out_ptr + out_start + out_offsets, mask=inside, other=0.0)
    delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
    tl.store(delta_ptr + bh.to(tl.int64) * slots + slot, delta)
    lse = tl.load(lse_ptr + bh.to(tl.int64) * slots + slot)

    dq = tl.zeros((QC * BY, BD), tl.float32)
    if CLS:
        k_cls = tl.load(k_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        v_cls = tl.load(v_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        r_cls = tl.load(table_ptr + d * K + CLS_COLUMN, mask=d < D, other=0.0).to(tl.float32)
        k_cls += r_cls * root
        p_cls = tl.exp2(tl.sum(q.to(tl.float32) * k_cls[None, :], 1) * scale - lse)
        ds_cls = p_cls * (tl.sum(dout.to(tl.float32) * v_cls[None, :], 1) - delta)
        dq += ds_cls[:, None] * k_cls[None, :]
        dk_cls = tl.sum(ds_cls[:, None] * q.to(tl.float32), 0)
        dv_cls = tl.sum(p_cls[:, None] * dout.to(tl.float32), 0)
        dcls_ptr += tl.program_id(0).to(tl.int64) * 2 * D
        tl.store(dcls_ptr + d, dk_cls, mask=d < D)
        tl.store(dcls_ptr + D + d, dv_cls, mask=d < D)

    own_block = (tl.arange(0, QC * BY) // BY)[:, None] == (kk // 8)[None, :]
    block_offsets = slot[:, None] * 64 + (kk % 8)[None, :]
    x_key = tl.arange(0, BX)
    one_hot_ptr += _one_hot_copy(x_zero) + (x_zero + x_first) * 8
    one_hot_offsets = (kk[None, :] // 8 - x_key[:, None]) * 8 + kk[None, :] % 8
    one_hot = tl.load(one_hot_ptr + one_hot_offsets)  # (BX, BK)
    key_offsets = (x_key + CLS)[:, None] * stride_n + d[None, :]
    dselected = tl.zeros((QC * BY, BK), tl.float32)
    for step in tl.range(0, H * X_CHUNKS):
        y_key = step // X_CHUNKS
        if X_CHUNKS > 1:
            x_key = step % X_CHUNKS * BX + tl.arange(0, BX)
            one_hot = tl.load(one_hot_ptr + one_hot_offsets - step % X_CHUNKS * BX * 8)
        row_start = (y_key * W + step % X_CHUNKS * BX) * stride_n
        in_keys = (x_key < W)[:, None] & (d < D)[None, :]
        k = tl.load(k_ptr + row_start + key_offsets, mask=in_keys, other=0.0)  # (BX, BD)
        v = tl.load(v_ptr + row_start + key_offsets, mask=in_keys, other=0.0)
        rows = bucket_of(y - y_key)
        offsets = block_offsets + (rows * 8)[:, None]
        selected = tl.load(lookup_ptr + offsets, mask=own_block, other=0.0)  # (QC * BY, BK)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s = tl.dot(selected, tl.trans(one_hot), acc=s, input_precision=PRECISION)
        p = tl.exp2(s * scale - lse[:, None])
        if not EVEN_X:
            p = tl.where((x_key < W)[None, :], p, 0.0)
        dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
        ds = (p * (dp - delta[:, None])).to(q.dtype)
        dq = tl.dot(ds, k, acc=dq, input_precision=PRECISION)
        dselected = tl.dot(ds, one_hot, acc=dselected, input_precision=PRECISION)
        # Where the row bucket of a query ends, its seven sums are stored, and the next begin.
        over = (bucket_of(y - y_key - 1) != rows) | (y_key == H - 1)
        if X_CHUNKS > 1:
            over = over & (step % X_CHUNKS == X_CHUNKS - 1)
        tl.store(dlookup_ptr + offsets, dselected.to(q.dtype), mask=own_block & over[:, None])
        dselected = tl.where(over[:, None], 0.0, dselected)

    tl.debug_barrier()  # what follows reads what other threads of this program have written
    dlookup_ptrs = dlookup_ptr + slot[:, None] * 64 + tl.arange(0, 64)[None, :]
    dlookup = tl.load(dlookup_ptrs, mask=_stored_buckets(y, H), other=0.0)
    table = _load_lookup_table(table_ptr, q.dtype, K, D, BD)
    dq *= scale / LOG2E
    dq = tl.dot(dlookup, tl.trans(table), acc=dq, input_precision=PRECISION)
    tl.store(dq_ptr + out_start + out_offsets, dq.to(q.dtype), mask=inside)


@triton.jit
def grid_backward_table(
    q_ptr, dlookup_ptr, dcls_ptr, dtable_ptr,
    stride_b, stride_h, stride_n, heads, H, W, YP, slots, tiles,
    K: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, CLS: tl.constexpr,
    QC: tl.constexpr, BY: tl.constexpr,
):  # fmt: skip
    """dR = q^T @ dlookup, every program over many query tiles: dtable (programs, D, K)."""
    d = tl.arange(0, BD)
    column = tl.arange(0, 64)[None, :]
    dtable = tl.zeros((BD, 64), tl.float32)
    dtable_cls = tl.zeros((BD,), tl.float32)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        bh, x_first, x, y = _tile_of_queries(tile, W, YP, QC, BY)
        start = (bh // heads).to(tl.int64) * stride_b + bh % heads * stride_h
        offsets = (y * W + x + CLS)[:, None] * stride_n + d[None, :]
        inside = ((x < W) & (y < H))[:, None] & (d < D)[None, :]
        q = tl.load(q_ptr + start + offsets, mask=inside, other=0.0)  # (QC * BY, BD)
        dlookup_ptrs = dlookup_ptr + bh.to(tl.int64) * slots * 64 + (x * YP + y)[:, None] * 64
        dlookup = tl.load(dlookup_ptrs + column, mask=_stored_buckets(y, H), other=0.0)
        dtable = tl.dot(tl.trans(q), dlookup, acc=dtable, input_precision=PRECISION)
        if CLS:
            dtable_cls += tl.load(dcls_ptr + tile * (2 * D) + d, mask=d < D, other=0.0)
    dtable_ptrs = dtable_ptr + tl.program_id(0) * D * K + d * K
    spatial = (column // 8 < 7) & (column % 8 < 7) & (d < D)[:, None]
    tl.store(dtable_ptrs[:, None] + column // 8 * 7 + column % 8, dtable, mask=spatial)
    if K > CLS_COLUMN:
        tl.store(dtable_ptrs + CLS_COLUMN, dtable_cls, mask=d < D)


@triton.jit
def grid_backward_kv(
    q_ptr, k_ptr, v_ptr, lookup_ptr, lse_ptr, dout_ptr, delta_ptr, one_hot_ptr, dk_ptr, dv_ptr,
    stride_b, stride_h, stride_n, heads, H, W, YP, slots, scale, x_zero,
    D: tl.constexpr, BD: tl.constexpr, CLS: tl.constexpr,
    KR: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, BK: tl.constexpr,
    X_CHUNKS: tl.constexpr, Y_CHUNKS: tl.constexpr,
):  # fmt: skip
    """One key tile, KR rows of BX keys: dk and dv (B, N, h, D).

    All products are transposed (keys x queries), so that their results feed the next product from
    registers.
    """
    tiles = tl.cdiv(H, KR) * X_CHUNKS
    bh, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    b, h = (bh // heads).to(tl.int64), bh % heads
    d, kk, key = tl.arange(0, BD), tl.arange(0, BK), tl.arange(0, KR * BX)
    y_first = tile // X_CHUNKS * KR
    y_key = y_first + key // BX
    x_key = tile % X_CHUNKS * BX + key % BX
    q_ptr += b * stride_b + h * stride_h
    k_ptr += b * stride_b + h * stride_h
    v_ptr += b * stride_b + h * stride_h
    out_start = (b * (H * W + CLS) * heads + h) * D
    dout_ptr += out_start
    lookup_ptr += bh.to(tl.int64) * slots * 64
    lse_ptr += bh.to(tl.int64) * slots
    delta_ptr += bh.to(tl.int64) * slots
    key_token = (y_key * W + x_key + CLS)[:, None]
    in_keys = ((x_key < W) & (y_key < H))[:, None] & (d < D)[None, :]
    key_offsets = key_token * stride_n + d[None, :]
    k = tl.load(k_ptr + key_offsets, mask=in_keys, other=0.0)  # (KR * BX, BD)
    v = tl.load(v_ptr + key_offsets, mask=in_keys, other=0.0)
    dk = tl.zeros((KR * BX, BD), tl.float32)
    dv = tl.zeros((KR * BX, BD), tl.float32)
    if CLS:  # The class token as a query: softmax cancels its constant bias.
        q_cls = tl.load(q_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        dout_cls = tl.load(dout_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        s_cls = tl.sum(k.to(tl.float32) * q_cls[None, :], 1) * scale
        p_cls = tl.exp2(s_cls - tl.load(lse_ptr + slots - 1))
        dp_cls = tl.sum(v.to(tl.float32) * dout_cls[None, :], 1)
        ds_cls = p_cls * (dp_cls - tl.load(delta_ptr + slots - 1))
        dk += ds_cls[:, None] * q_cls[None, :]
        dv += p_cls[:, None] * dout_cls[None, :]

    own_block = (key // BX)[:, None] == (kk // 8)[None, :]
    one_hot_ptr += _one_hot_copy(x_zero)
    one_hot_ptrs = one_hot_ptr + (x_zero - x_key)[:, None] * 8 + (kk % 8)[None, :]
    y_query = tl.arange(0, BY)
    query_offsets = (y_query * W + CLS)[:, None] * stride_n + d[None, :]
    dout_offsets = (y_query * W + CLS)[:, None] * (heads * D) + d[None, :]
    for step in tl.range(0, W * Y_CHUNKS):
        x = step // Y_CHUNKS
        if Y_CHUNKS > 1:
            y_query = step % Y_CHUNKS * BY + tl.arange(0, BY)
        first = step % Y_CHUNKS * BY * W + x
        in_queries = (y_query < H)[:, None] & (d < D)[None, :]
        q = tl.load(
            q_ptr + first * stride_n + query_offsets, mask=in_queries, other=0.0
        )  # (BY, BD)
        dout = tl.load(dout_ptr + first * (heads * D) + dout_offsets, mask=in_queries, other=0.0)
        lse = tl.load(lse_ptr + x * YP + y_query)
        delta = tl.load(delta_ptr + x * YP + y_query)
        rows = bucket_of(y_query[:, None] - y_first - (kk // 8)[None, :])
        lookup_offsets = y_query[:, None] * 64 + rows * 8 + (kk % 8)[None, :]
        selected = tl.load(lookup_ptr + x * YP * 64 + lookup_offsets)  # (BY, BK)
        one_hot = tl.load(one_hot_ptrs + x * 8, mask=own_block, other=0.0)  # (KR * BX, BK)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        s = tl.dot(one_hot, tl.trans(selected), acc=s, input_precision=PRECISION)
        p = tl.exp2(s * scale - lse[None, :])  # (KR * BX, BY)
        dv = tl.dot(p.to(dout.dtype), dout, acc=dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, acc=dk, input_precision=PRECISION)

    out_offsets = key_token * (heads * D) + d[None, :]
    tl.store(dk_ptr + out_start + out_offsets, (dk * (scale / LOG2E)).to(k.dtype), mask=in_keys)
    tl.store(dv_ptr + out_start + out_offsets, dv.to(k.dtype), mask=in_keys)
