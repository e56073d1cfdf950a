"""iRPE attention of one kind against the literal formula in float64, gradients included."""

import torch
from torch.utils.checkpoint import checkpoint

from lomar_det.layers.irpe.buckets import NUM_BUCKETS, NUM_SPATIAL_BUCKETS, TokenGrid, bucket_table
from lomar_det.layers.irpe.dense import indexed_rpe_attention

NAMES = ("out", "dq", "dk", "dv", "dtable")
TOLERANCE = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}

# batch, heads, head_dim, grid
GPU_CASES = {
    "global": (1, 2, 64, TokenGrid(64, 64)),
    "odd sides": (1, 2, 64, TokenGrid(50, 37)),
    "larger than a tile": (1, 1, 64, TokenGrid(50, 84)),
    "head_dim 80": (1, 2, 80, TokenGrid(32, 48)),
    "head_dim 128 with class token": (1, 2, 128, TokenGrid(20, 33, True)),
    "detector windows": (50, 12, 64, TokenGrid(14, 14)),
    "edge windows": (4, 12, 64, TokenGrid(14, 8)),
    "classification": (4, 12, 64, TokenGrid(14, 14, True)),
    "pretraining windows": (600, 12, 64, TokenGrid(7, 7, True)),
    "window, head_dim 128": (3, 2, 128, TokenGrid(7, 7, True)),
    "small window": (3, 2, 32, TokenGrid(3, 4)),
}


def make_inputs(batch, heads, head_dim, grid, dtype, device="cpu", num_buckets=None):
    """A fused qkv projection (B, N, 3, h, D), a table (D, K) and a gradient (B, h, N, D)."""
    torch.manual_seed(0)
    num_buckets = num_buckets or (NUM_BUCKETS if grid.cls_token else NUM_SPATIAL_BUCKETS)
    qkv = torch.randn(batch, grid.num_tokens, 3, heads, head_dim, device=device).to(dtype)
    # rounded as the kernel rounds it: what is compared is the kernel, not the rounding of inputs
    table = (torch.randn(head_dim, num_buckets, device=device) * head_dim**-0.5).to(dtype)
    table = table.to(torch.promote_types(dtype, torch.float32))
    dout = torch.randn(batch, heads, grid.num_tokens, head_dim, device=device).to(dtype)
    return qkv, table, dout


def run(attention, qkv, table, dout):
    """(out, dq, dk, dv, dtable) of ``attention(q, k, v, table)``."""
    qkv, table = qkv.detach().requires_grad_(), table.detach().requires_grad_()
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = attention(q, k, v, table)
    dqkv, dtable = torch.autograd.grad(out, (qkv, table), dout)
    return out.detach(), *dqkv.unbind(2), dtable


def errors(case, attention, device="cpu", num_buckets=None):
    """Relative error of the output and every gradient against the literal formula in float64.

    Args:
        case: batch, heads, head_dim, grid, dtype.
        attention: A function of (q, k, v, table, grid).
    """
    grid = case[3]
    inputs = make_inputs(*case, device=device, num_buckets=num_buckets)
    buckets = bucket_table(grid, device)
    exact = run(lambda *a: indexed_rpe_attention(*a, buckets), *(t.double() for t in inputs))
    found = run(lambda *a: attention(*a, grid), *inputs)
    return {
        name: ((a.double() - b).norm() / b.norm()).item()
        for name, a, b in zip(NAMES, found, exact, strict=True)
    }


def checkpointed(case, attention, device="cpu"):
    """`run` without and with activation checkpointing; arguments as of `errors`."""
    inputs = make_inputs(*case, device=device)

    def on_grid(*tensors):
        return attention(*tensors, case[3])

    plain = run(on_grid, *inputs)
    return plain, run(lambda *a: checkpoint(on_grid, *a, use_reentrant=False), *inputs)


def compiled(case, attention, device):
    """`run` without and with torch.compile, in one graph, under bf16 autocast."""
    inputs = make_inputs(*case, device=device)

    def under_autocast(*tensors):
        with torch.autocast(device, dtype=torch.bfloat16):
            return attention(*tensors, case[3])

    torch.compiler.reset()
    plain = run(under_autocast, *inputs)
    assert plain[0].dtype == torch.bfloat16
    return plain, run(torch.compile(under_autocast, fullgraph=True), *inputs)


def assert_small(found, tolerance):
    # written so that NaN fails
    wrong = {name: error for name, error in found.items() if not error < tolerance}
    assert not wrong
