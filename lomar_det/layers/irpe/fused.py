"""Fused iRPE attention: exact, linear in memory, deterministic, forward and backward, by Triton.

There are two sets of kernels. `kernels.window` serves windows of up to 64 tokens, one program each.
`kernels.grid` serves larger grids, and all of float32, with `kernels.cls` for the class token. Both
are custom operators: torch.compile has no graph break, and activation checkpointing, autocast and
DistributedDataParallel work as with any operator.

`indexed_rpe_attention` in `dense.py` is the slow literal twin.

Shapes: B batch (or windows), h heads, N tokens, D head_dim, H x W patch grid, K buckets.
"""

import os

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .buckets import TokenGrid
from .kernels.calls import (
    empty_rows,
    grid_attention,
    grid_attention_backward,
    grid_outputs,
    tiles_of,
    window_attention,
    window_attention_backward,
)

MAX_WINDOW_TOKENS = 64
_INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it at import as well
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# GPUs of these compute capabilities have about 100 KB of shared memory per program, others 160.
_SMALL_SHARED_MEMORY = ((8, 6), (8, 9), (12, 0), (12, 1))


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Casts the inputs of a custom operator as autocast casts those of a matrix product."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype(device)) for t in tensors)


def why_unsupported(q: Tensor, grid: TokenGrid) -> str | None:
    """The reason why `fused_rpe_attention` cannot serve these tensors, or None."""
    if q.dtype not in _DTYPES:
        return f"the fused kernel has no {q.dtype}"
    if not 16 <= q.shape[-1] <= 128:
        return f"the fused kernel serves head_dim 16 to 128, not {q.shape[-1]}"
    if _INTERPRET:
        if q.dtype == torch.bfloat16:
            return "Triton's interpreter has no bfloat16"
    elif not q.is_cuda:
        return f"the fused kernel needs CUDA, the tensors are on {q.device.type}"
    else:
        capability = torch.cuda.get_device_capability(q.device)
        if capability[0] < 8:
            return "the fused kernel needs compute capability 8.0 or newer"
        if q.shape[-1] > 64 and capability in _SMALL_SHARED_MEMORY:
            return "this GPU has too little shared memory for the fused kernel above head_dim 64"
    return None


def fused_rpe_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: TokenGrid) -> Tensor:
    """Attention over a grid of tokens with iRPE on keys; see `rpe_attention` for the formula.

    It is differentiable once, with respect to all four tensors. Views of one (B, N, 3, h, D)
    projection are not copied.

    Args:
        q, k, v: (B, h, N, D), N = ``grid.num_tokens``, D 16 to 128; bfloat16, float16 or float32.
        table: (D, K), K = 49, or 50 if the grid has a class token; any floating-point type.
        grid: Shape of the token grid.

    Returns:
        (B, h, N, D), laid out in memory as (B, N, h, D), so that merging the heads is free.

    Raises:
        ValueError: the kernel does not support these tensors; see `why_unsupported`.
    """
    q, k, v = cast_for_autocast(q, k, v)
    reason = why_unsupported(q, grid)
    if reason is not None:
        raise ValueError(f"{reason}; use attention backend 'matmul' or 'eager'")
    height, width, cls_token = grid
    if _fits_window(q, grid.num_tokens):
        return torch.ops.lomar_det.irpe_window(q, k, v, table, height, width, cls_token)
    return torch.ops.lomar_det.irpe_grid(q, k, v, table, height, width, cls_token)[0]


def _fits_window(q: Tensor, num_tokens: int) -> bool:
    # In float32 the kernel needs more registers than there are, and half a minute to compile.
    return num_tokens <= MAX_WINDOW_TOKENS and q.dtype != torch.float32


_ARGS = "Tensor q, Tensor k, Tensor v, Tensor table"
_GRID = "int height, int width, bool cls_token"
_GRADIENTS = "(Tensor, Tensor, Tensor, Tensor)"


def _register(name: str, schema: str, implementation, fake) -> None:
    name = f"lomar_det::{name}"
    torch.library.define(name, schema)
    torch.library.impl(name, ("cuda", "cpu") if _INTERPRET else "cuda", implementation)
    torch.library.register_fake(name, fake)


def _fake_window(q, k, v, table, height, width, cls_token):
    return empty_rows(q)


def _fake_grid(q, k, v, table, height, width, cls_token):
    return grid_outputs(q, tiles_of(height, width, cls_token, q.shape[3], q.dtype))


def _fake_backward(dout, q, k, v, table, *_):
    return empty_rows(q), empty_rows(q), empty_rows(q), table.new_empty(table.shape)


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, table, *ctx.grid = inputs
    saved = output if isinstance(output, tuple) else ()
    ctx.save_for_backward(q, k, v, table, *saved)


def _window_autograd(ctx, dout):
    gradients = torch.ops.lomar_det.irpe_window_backward(dout, *ctx.saved_tensors, *ctx.grid)
    return *gradients, None, None, None


def _grid_autograd(ctx, dout, *_):
    gradients = torch.ops.lomar_det.irpe_grid_backward(dout, *ctx.saved_tensors, *ctx.grid)
    return *gradients, None, None, None


_register("irpe_window", f"({_ARGS}, {_GRID}) -> Tensor", window_attention, _fake_window)
_register(
    "irpe_window_backward",
    f"(Tensor dout, {_ARGS}, {_GRID}) -> {_GRADIENTS}",
    window_attention_backward,
    _fake_backward,
)
_register(
    "irpe_grid", f"({_ARGS}, {_GRID}) -> (Tensor, Tensor, Tensor)", grid_attention, _fake_grid
)
_register(
    "irpe_grid_backward",
    f"(Tensor dout, {_ARGS}, Tensor out, Tensor lookup, Tensor lse, {_GRID}) -> {_GRADIENTS}",
    grid_attention_backward,
    _fake_backward,
)
torch.library.register_autograd(
    "lomar_det::irpe_window", _window_autograd, setup_context=_setup_context
)
torch.library.register_autograd(
    "lomar_det::irpe_grid", _grid_autograd, setup_context=_setup_context
)


def _count_flops(q, table, num_products: int, num_lookups: int) -> int:
    B, h, N, D = q
    return 2 * B * h * N * D * (num_products * N + num_lookups * table[1])


@register_flop_formula([torch.ops.lomar_det.irpe_window, torch.ops.lomar_det.irpe_grid])
def _attention_flops(q, k, v, table, *_, **__) -> int:
    """For FlopCounterMode: q k, the lookup, and the product with v."""
    return _count_flops(q, table, 2, 1)


@register_flop_formula(torch.ops.lomar_det.irpe_window_backward)
def _window_backward_flops(dout, q, k, v, table, *_, **__) -> int:
    """Recomputed logits and lookup, gradients of both, and the product with v."""
    return _count_flops(q, table, 5, 3)


@register_flop_formula(torch.ops.lomar_det.irpe_grid_backward)
def _grid_backward_flops(dout, q, k, v, table, *_, **__) -> int:
    """As for windows, but the forward pass keeps the lookup."""
    return _count_flops(q, table, 5, 2)
