"""iRPE attention by torch's FlexAttention: exact, and linear in memory once it is compiled.

The table is looked up once for every query and bucket, and the kernel adds the entry of each pair
to its logit. The bucket is computed from coordinates on the way: nothing of N x N is ever stored.

FlexAttention is compiled wherever it can be trained. On a CPU torch refuses its backward pass, and
computes it densely: there it serves to try a model. Nothing may train it uncompiled: with
activation checkpointing torch 2.14 then gets the gradient of the lookup wrong, without an error.

`indexed_rpe_attention` in `rpe_attention.py` is the slow literal twin.

Shapes: B batch (or windows), h heads, N tokens, D head_dim, H x W patch grid, K buckets.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from .irpe import BUCKET_STEPS, CLS_BUCKET, NUM_SIDE_BUCKETS, TokenGrid
from .rpe_attention import cast_for_autocast

MIN_HEAD_DIM = 16  # Triton's products have no smaller side
_HAS_TRITON = find_spec("triton") is not None
_TRAINS_INSIDE_A_GRAPH = torch.__version__ >= (2, 9)  # before, buffers of backward get confused
_DEVICES = ("cuda", "cpu", "mps", "xpu", "hpu")
_FORWARD_ONLY = ("cpu", "mps")

# Sizes are left to torch, which makes those that change variable from the second compilation on. A
# detector has windows of four shapes beside the whole grid, in training and in evaluation: with
# dynamic=False they would pass dynamo's limit of 8, and FlexAttention would turn dense and slow
# without an error. fullgraph makes an error of it.
_compiled_flex_attention = torch.compile(flex_attention, fullgraph=True)


def why_unsupported(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> str | None:
    """The reason why `flex_rpe_attention` cannot serve these tensors, or None."""
    if q.device.type not in _DEVICES:
        return f"FlexAttention does not know {q.device.type}"
    # torch looks at q, k and v themselves, also where no gradients are recorded
    trains = any(t.requires_grad for t in (q, k, v))
    trains = trains or (table.requires_grad and torch.is_grad_enabled())
    if trains and q.device.type in _FORWARD_ONLY:
        return f"FlexAttention has no backward pass on {q.device.type}"
    if trains and torch.compiler.is_compiling() and not _TRAINS_INSIDE_A_GRAPH:
        return "FlexAttention needs torch 2.9 to be trained inside torch.compile"
    if q.device.type == "cuda":
        if not _HAS_TRITON:
            return "FlexAttention needs Triton on CUDA, which is not installed"
        if q.dtype == torch.float64:
            return f"FlexAttention has no {q.dtype} on CUDA"
        if q.shape[-1] < MIN_HEAD_DIM:
            return f"FlexAttention serves head_dim {MIN_HEAD_DIM} and more, not {q.shape[-1]}"
    return None


def flex_rpe_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: TokenGrid) -> Tensor:
    """Attention over a grid of tokens with iRPE on keys; see `rpe_attention` for the formula.

    On CUDA the first call compiles, and the gradient of the table is added up in no fixed order:
    two runs may differ in the last bits. Inside torch.compile it becomes part of that graph.

    Args:
        q, k, v: (B, h, N, D), N = ``grid.num_tokens``; on CUDA D is 16 or more, and the type
            bfloat16, float16 or float32.
        table: (D, K), K = 49, or 50 if the grid has a class token; any floating-point type.
        grid: Shape of the token grid.

    Returns:
        (B, h, N, D).

    Raises:
        ValueError: for these tensors `why_unsupported` has a reason.
    """
    q, k, v = cast_for_autocast(q, k, v)
    reason = why_unsupported(q, k, v, table)
    if reason is not None:
        raise ValueError(f"{reason}; use attention backend 'matmul' or 'eager'")
    lookup = q @ table.to(q.dtype)  # (B, h, N, K)
    # the gradient of the lookup has its type, and is a sum over keys: not in half precision
    lookup = lookup.to(torch.promote_types(lookup.dtype, torch.float32))
    part_of_a_graph = torch.compiler.is_compiling()
    dense = q.device.type in _FORWARD_ONLY
    attend = flex_attention if part_of_a_graph or dense else _compiled_flex_attention
    return attend(q, k, v, score_mod=_add_lookup(lookup, grid))


def _add_lookup(lookup: Tensor, grid: TokenGrid) -> Callable[..., Tensor]:
    """FlexAttention's ``score_mod``: what becomes of the logit of one query and key."""
    rows, columns = _coordinates(grid, lookup.device)
    cls_token = grid.cls_token

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        bucket = _side_bucket(rows[i] - rows[j]) * NUM_SIDE_BUCKETS
        bucket = bucket + _side_bucket(columns[i] - columns[j])
        if cls_token:
            bucket = torch.where((i == 0) | (j == 0), CLS_BUCKET, bucket)
        return score + lookup[batch, head, i, bucket]

    return score_mod


def _side_bucket(distance: Tensor) -> Tensor:
    """1-D bucket, 0 .. 6, by comparisons: cheaper in a kernel than reading a table."""
    return sum((distance >= step).to(torch.int32) for step in BUCKET_STEPS)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # first made by a detection, they must serve training, too
def _coordinates(grid: TokenGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every token, two (N,): tensors, where sizes would be compiled in.

    A class token has some, too, which nobody looks at.
    """
    token = torch.arange(grid.num_tokens, dtype=torch.int32, device=device)
    patch = (token - int(grid.cls_token)).clamp(min=0)
    return patch // grid.width, patch % grid.width
