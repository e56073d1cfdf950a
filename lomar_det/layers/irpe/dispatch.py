"""Attention with iRPE on keys: one function, several exact implementations.

    S[i, j] = (q_i . k_j) * head_dim^-0.5 + q_i . R[bucket(i, j)]          out = softmax(S) @ v

The query is *not* scaled in the second term. Upstream iRPE for DeiT scales it; LoMaR does not. At
head_dim 64 the terms differ by a factor of 8, and no error shows it.

Shapes: B batch (or windows), h heads, N tokens, D head_dim, H x W patch grid, K buckets.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from .buckets import CLS_BUCKET, TokenGrid, bucket_table
from .dense import indexed_rpe_attention, matmul_bias

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "eager", "matmul", "fused")


def rpe_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: TokenGrid, backend: str = "auto"
) -> Tensor:
    """Attention over a grid of tokens with iRPE on keys.

    Args:
        q, k, v: (B, h, N, D) with N = ``grid.num_tokens``.
        table: (D, K) lookup table; K is 49, or 50 if the grid has a class token.
        grid: Shape of the token grid.
        backend: ``eager``, the slow literal formula; ``matmul``, the bias as small matrix products
            (no gather, no scatter in backward) and SDPA; ``fused``, the Triton kernel, linear in
            memory; ``auto``, the fastest of them. Where the kernel does not support the tensors,
            another takes its place: see `pick_backend`.

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
    backend = pick_backend(q, grid, backend)
    if backend == "fused":
        from .fused import fused_rpe_attention  # not at the top: Triton may be missing

        return fused_rpe_attention(q, k, v, table, grid)
    if backend == "matmul":
        bias = matmul_bias(q, table, grid)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return indexed_rpe_attention(q, k, v, table, bucket_table(grid, q.device))


def pick_backend(q: Tensor, grid: TokenGrid, asked: str = "auto") -> str:
    """The backend that computes `rpe_attention`; logs each choice and its reason once.

    ``auto`` means fused on CUDA and eager elsewhere, since gathers are cheap on a CPU. Where the
    kernel does not support the tensors, matmul replaces fused on CUDA: it needs no Triton and is
    deterministic. Any other choice stands as asked.
    """
    choice, why = asked, "asked for"
    if asked == "auto":
        choice, why = "eager", f"the tensors are on {q.device.type}"
        if q.is_cuda:
            choice, why = "fused", "on CUDA with Triton"
    unsupported = _why_not_fused(q, grid) if choice == "fused" else None
    if unsupported:
        choice, why = "matmul" if q.is_cuda else "eager", unsupported
    _log_once(choice, why)
    return choice


def _why_not_fused(q: Tensor, grid: TokenGrid) -> str | None:
    try:
        from .fused import why_unsupported
    except ImportError as error:
        return f"the fused kernel cannot be imported ({error})"
    return why_unsupported(q, grid)


_logged: set[tuple[str, str]] = set()


@torch.compiler.assume_constant_result  # torch.compile calls it once, while it traces
def _log_once(choice: str, why: str) -> None:
    if (choice, why) not in _logged:
        _logged.add((choice, why))
        logger.info("iRPE attention: backend %s (%s)", choice, why)
