"""The fused Triton kernels against the literal formula: outputs and all gradients.

On a CPU the kernels run in Triton's interpreter. It must be switched on before Triton is imported,
and would then hold for every other test, so those checks run in a process of their own: this file,
as a script.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from lomar_det.layers.irpe import NUM_BUCKETS, NUM_SPATIAL_BUCKETS, TokenGrid, bucket_table
from lomar_det.layers.rpe_attention import indexed_rpe_attention, rpe_attention

pytest.importorskip("triton")

NAMES = ("out", "dq", "dk", "dv", "dtable")
TOLERANCE = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}

# batch, heads, head_dim, grid, dtype: windows done by one program (never in float32), and grids
CPU_CASES = {
    "window": (2, 2, 32, TokenGrid(3, 4), torch.float16),
    "window with class token": (2, 2, 32, TokenGrid(7, 7, True), torch.float16),
    "window of 64 tokens": (1, 2, 32, TokenGrid(8, 8), torch.float16),
    "window, head_dim 48": (1, 2, 48, TokenGrid(5, 9, True), torch.float16),
    "small grid with class token": (2, 1, 32, TokenGrid(7, 7, True), torch.float32),
    "grid 14x14": (1, 2, 32, TokenGrid(14, 14), torch.float32),
    "grid 14x14 with class token": (1, 2, 32, TokenGrid(14, 14, True), torch.float32),
    "grid, head_dim 48, half": (1, 1, 48, TokenGrid(9, 17), torch.float16),
    "wide grid, chunks of rows": (1, 1, 32, TokenGrid(3, 37), torch.float32),
    "tall grid, chunks of columns": (1, 1, 32, TokenGrid(37, 3, True), torch.float32),
}


def make_inputs(batch, heads, head_dim, grid, dtype, device="cpu", num_buckets=None):
    """A fused qkv projection (B, N, 3, h, D), a table (D, K) and a gradient (B, h, N, D)."""
    torch.manual_seed(0)
    num_buckets = num_buckets or (NUM_BUCKETS if grid.cls_token else NUM_SPATIAL_BUCKETS)
    qkv = torch.randn(batch, grid.num_tokens, 3, heads, head_dim, device=device).to(dtype)
    # rounded as the kernel rounds it: what is compared is the kernel, not the rounding of inputs
    table = (torch.randn(head_dim, num_buckets, device=device) * head_dim**-0.5).to(dtype).float()
    dout = torch.randn(batch, heads, grid.num_tokens, head_dim, device=device).to(dtype)
    return qkv, table, dout


def run(attention, qkv, table, dout):
    """(out, dq, dk, dv, dtable) of ``attention(q, k, v, table)``."""
    qkv, table = qkv.detach().requires_grad_(), table.detach().requires_grad_()
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = attention(q, k, v, table)
    dqkv, dtable = torch.autograd.grad(out, (qkv, table), dout)
    return out.detach(), *dqkv.unbind(2), dtable


def errors(case, device="cpu", num_buckets=None):
    """Relative error of the output and every gradient against the literal formula in float64."""
    grid = case[3]
    inputs = make_inputs(*case, device=device, num_buckets=num_buckets)
    buckets = bucket_table(grid, device)
    exact = run(lambda *a: indexed_rpe_attention(*a, buckets), *(t.double() for t in inputs))
    fused = run(lambda *a: rpe_attention(*a, grid, "fused"), *inputs)
    return {
        name: ((a.double() - b).norm() / b.norm()).item()
        for name, a, b in zip(NAMES, fused, exact, strict=True)
    }


def assert_small(found, dtype):
    # written so that NaN fails
    wrong = {name: error for name, error in found.items() if not error < TOLERANCE[dtype]}
    assert not wrong


@pytest.fixture(scope="module")
def interpreted():
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CPU_CASES)
def test_matches_the_literal_formula_in_the_interpreter(name, interpreted):
    assert_small(interpreted[name], CPU_CASES[name][-1])


def test_a_table_may_keep_the_bucket_of_a_missing_class_token(interpreted):
    assert_small(interpreted["spare bucket, window"], torch.float16)
    assert_small(interpreted["spare bucket, grid"], torch.float32)


def test_operators_are_registered_as_they_should_be(interpreted):
    assert interpreted["opcheck"] == "passed"


def test_says_why_it_cannot_serve():
    from lomar_det.layers.rpe_attention_triton import fused_rpe_attention, why_unsupported

    grid = TokenGrid(7, 7)
    assert "float64" in why_unsupported(torch.zeros(1, 1, 49, 32, dtype=torch.float64), grid)
    assert "head_dim" in why_unsupported(torch.zeros(1, 1, 49, 160), grid)
    assert "cpu" in why_unsupported(torch.zeros(1, 1, 49, 32), grid)
    q = torch.zeros(1, 1, 49, 32)
    with pytest.raises(ValueError, match="matmul"):
        fused_rpe_attention(q, q, q, torch.zeros(32, 49), grid)


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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", GPU_CASES)
def test_matches_the_literal_formula_on_cuda(name, dtype):
    assert_small(errors((*GPU_CASES[name], dtype), "cuda"), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["odd sides", "classification", "pretraining windows"])
def test_two_runs_agree_bit_for_bit(name):
    case = (*GPU_CASES[name], torch.bfloat16)
    inputs = make_inputs(*case, device="cuda")
    runs = [run(lambda *a: rpe_attention(*a, case[3], "fused"), *inputs) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["edge windows", "classification", "small window"])
def test_compiles_without_a_graph_break_and_under_autocast(name):
    grid = GPU_CASES[name][3]
    inputs = make_inputs(*GPU_CASES[name], torch.float32, device="cuda")

    def attention(*tensors):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return rpe_attention(*tensors, grid, "fused")

    eager = run(attention, *inputs)
    compiled = run(torch.compile(attention, fullgraph=True), *inputs)
    assert eager[0].dtype == torch.bfloat16
    for a, b in zip(eager, compiled, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_activation_checkpointing_changes_nothing():
    from torch.utils.checkpoint import checkpoint

    case = (*GPU_CASES["classification"], torch.bfloat16)
    inputs = make_inputs(*case, device="cuda")

    def attention(*tensors):
        return rpe_attention(*tensors, case[3], "fused")

    plain = run(attention, *inputs)
    again = run(lambda *a: checkpoint(attention, *a, use_reentrant=False), *inputs)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


def main() -> None:
    found = {name: errors(case) for name, case in CPU_CASES.items()}
    for name in ("window", "grid 14x14"):
        spare = errors(CPU_CASES[name], num_buckets=NUM_BUCKETS)
        found[f"spare bucket, {name.split()[0]}"] = spare
    qkv, table, _ = make_inputs(1, 1, 16, TokenGrid(2, 3), torch.float16)
    q, k, v = (t.detach().requires_grad_() for t in qkv.permute(2, 0, 3, 1, 4).unbind(0))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    window = torch.ops.lomar_det.irpe_window.default
    torch.library.opcheck(window, (q, k, v, table, 2, 3, False), test_utils=checks)
    grid = torch.ops.lomar_det.irpe_grid.default
    torch.library.opcheck(grid, (q, k, v, table, 2, 3, False), test_utils=checks)
    found["opcheck"] = "passed"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
