"""Attention with iRPE on keys: one function, several exact implementations.

    S[i, j] = (q_i . k_j) * head_dim^-0.5 + q_i . R[bucket(i, j)]          out = softmax(S) @ v

The query is *not* scaled in the second term: upstream iRPE for DeiT scales it, LoMaR does not. At
head_dim 64 the difference is a factor of 8, and silent.

Shapes: B batch (or windows), h heads, N tokens, D head_dim, H x W patch grid, K buckets.
"""

import logging
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .irpe import (
    CLS_BUCKET,
    NUM_SIDE_BUCKETS,
    NUM_SPATIAL_BUCKETS,
    TokenGrid,
    bucket_table,
    side_buckets,
)

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "eager", "matmul", "flex", "fused")
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has none


def is_recording() -> bool:
    """Whether torch.export or torch.jit.trace is recording: sizes may then be symbols, not ints."""
    return torch.jit.is_tracing() or _is_exporting()


def rpe_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: TokenGrid, backend: str = "auto"
) -> Tensor:
    """Attention over a grid of tokens with iRPE on keys.

    Args:
        q, k, v: (B, h, N, D) with N = ``grid.num_tokens``.
        table: (D, K) lookup table; K is 49, or 50 if the grid has a class token.
        grid: Shape of the token grid.
        backend: ``eager``, the slow literal formula; ``matmul``, the bias as small matrix products
            (no gather, no scatter in backward) and SDPA; ``flex``, torch's FlexAttention, linear in
            memory on CUDA, forward only on a CPU; ``fused``, the Triton kernel, linear in memory;
            ``auto``, the best that serves. `pick_backend` says what takes the place of a ``flex``
            or ``fused`` that cannot serve these tensors.

    Returns:
        (B, h, N, D) in the dtype of ``v``.

    Raises:
        ValueError: unknown backend, a table too small for a class token, or N not the grid's.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if q.shape[2] != grid.num_tokens:
        raise ValueError(f"{q.shape[2]} tokens do not fill {grid}, which has {grid.num_tokens}")
    if grid.cls_token and table.shape[1] <= CLS_BUCKET:
        raise ValueError("a class token needs bucket 49, but the iRPE table has only 49 buckets")
    if is_recording():
        return recorded_rpe_attention(q, k, v, table, grid)
    backend = pick_backend(q, k, v, table, grid, backend)
    if backend == "fused":
        from .rpe_attention_triton import fused_rpe_attention

        return fused_rpe_attention(q, k, v, table, grid)
    if backend == "flex":
        from .rpe_attention_flex import flex_rpe_attention

        return flex_rpe_attention(q, k, v, table, grid)
    if backend == "matmul":
        bias = matmul_bias(q, table, grid)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return indexed_rpe_attention(q, k, v, table, bucket_table(grid, q.device))


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast, if it is on, makes of the inputs of a matrix product: for custom operators."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(device)) for t in tensors)


def indexed_rpe_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, buckets: Tensor
) -> Tensor:
    """The literal formula, for any buckets: (N, N), or (B, N, N) for subsets of a grid."""
    logits = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5  # (B, h, N, N)
    lookup = q @ table.to(q.dtype)  # (B, h, N, K)
    index = buckets if buckets.dim() == 2 else buckets[:, None]
    logits = logits + lookup.gather(-1, index.expand(logits.shape))
    # softmax in fp32 at least, whatever autocast says: half precision loses the tail of long rows
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.softmax(dim=-1, dtype=dtype).to(v.dtype) @ v


def recorded_rpe_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: TokenGrid, valid: Tensor | None = None
) -> Tensor:
    """The formula for torch.export and torch.jit.trace: products of matrices, sizes may be symbols.

    Args:
        valid: (B, N), True where a token takes part; all do by default.
    """
    bias = matmul_bias(q, table, grid)
    if valid is not None:
        bias = bias.masked_fill(~valid[:, None, None, :], float("-inf"))
    return recorded_attention(q, k, v, bias)


def recorded_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """SDPA spelled out: its memory layout depends on the kernel, and ONNX export fails over it."""
    logits = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    logits = logits if bias is None else logits + bias
    return logits.softmax(dim=-1) @ v


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _one_hot_sides(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(size, 7, size): for a query coordinate, the one-hot bucket of every key coordinate."""
    one_hot = F.one_hot(side_buckets(size), NUM_SIDE_BUCKETS).transpose(1, 2)
    return one_hot.to(device, dtype).contiguous()


def matmul_bias(q: Tensor, table: Tensor, grid: TokenGrid) -> Tensor:
    """The whole (B, h, N, N) bias q . R[bucket], by products with one-hot matrices.

    The buckets are a product of a row and a column bucket, so the bias is T[r][c] with T = q @ R:
    select by row first, then by column. Selecting by a one-hot product costs few FLOPs (7 terms)
    and has products as its gradients, where a gather has a slow scatter-add.
    """
    B, h, N, D = q.shape
    H, W = grid.height, grid.width
    start = int(grid.cls_token)
    lookup = q @ table.to(q.dtype)  # (B, h, N, K)
    T = lookup[:, :, start:, :NUM_SPATIAL_BUCKETS].reshape(B, h, H, W, 7, 7)  # y x row col
    # symbols are no keys of a cache, and nothing that belongs to a recording may stay in it
    one_hot_sides = _one_hot_sides.__wrapped__ if is_recording() else _one_hot_sides
    rows = one_hot_sides(H, q.device, q.dtype)  # (H, 7, H)
    columns = one_hot_sides(W, q.device, q.dtype)  # (W, 7, W)
    bias = torch.einsum("bhyxrc,yrk->bhyxkc", T, rows)  # k: key row
    bias = torch.einsum("bhyxkc,xcl->bhyxkl", bias, columns)  # l: key column
    bias = bias.reshape(B, h, H * W, H * W)
    if not grid.cls_token:
        return bias
    cls_bias = lookup[..., CLS_BUCKET:]  # (B, h, N, 1): the same for every key paired with cls
    bias = torch.cat([cls_bias[:, :, 1:], bias], dim=3)
    return torch.cat([cls_bias[:, :, :1].expand(B, h, 1, N), bias], dim=2)


def pick_backend(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: TokenGrid, asked: str = "auto"
) -> str:
    """The backend that computes `rpe_attention`; says so once per kind of case in the log.

    What was asked for, if it serves these tensors. ``auto`` means fused on CUDA. Where fused or
    flex cannot serve, matmul does on CUDA: it is about as fast as flex, needs neither compilation
    nor Triton, and gives the same bits twice. But its N x N bias can be too large for the GPU
    (`_bias_is_huge`); then flex, if that serves. Elsewhere eager: on a CPU gathers are cheap.
    """
    choice, why = asked, "asked for"
    if asked == "auto":
        choice, why = "eager", f"the tensors are on {q.device.type}"
        if q.is_cuda:
            choice, why = "fused", "on CUDA with Triton"
    unsupported = None
    if choice == "fused":
        unsupported = _why_not_fused(q, grid)
    elif choice == "flex":
        unsupported = _why_not_flex(q, k, v, table)
    if unsupported:
        choice, why = "matmul" if q.is_cuda else "eager", unsupported
        if _bias_is_huge(q) and not _why_not_flex(q, k, v, table):
            choice, why = "flex", f"{why}, and an N x N bias would fill the GPU"
    _log_once(choice, why)
    return choice


def _bias_is_huge(q: Tensor) -> bool:
    """Whether an N x N bias takes more than a tenth of a GPU's memory.

    A ViTDet has four global blocks, which keep theirs for the backward pass, where one more is
    made as its gradient: half the memory for biases alone, and the rest of a detector beside them.
    """
    B, h, N, _ = q.shape
    return q.is_cuda and 10 * B * h * N * N * q.element_size() > _gpu_memory(q.device)


@torch.compiler.assume_constant_result
def _gpu_memory(device: torch.device) -> int:
    """In bytes, used or not: what is free varies, and the choice must not."""
    return torch.cuda.get_device_properties(device).total_memory


def _why_not_flex(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> str | None:
    from .rpe_attention_flex import why_unsupported

    return why_unsupported(q, k, v, table)


def _why_not_fused(q: Tensor, grid: TokenGrid) -> str | None:
    try:
        from .rpe_attention_triton import why_unsupported
    except ImportError as error:
        return f"the fused kernel cannot be imported ({error})"
    return why_unsupported(q, grid)


_logged: set[tuple[str, str]] = set()


@torch.compiler.assume_constant_result  # torch.compile logs while tracing: no break in the graph
def _log_once(choice: str, why: str) -> None:
    if (choice, why) not in _logged:
        _logged.add((choice, why))
        logger.info("iRPE attention: backend %s (%s)", choice, why)
