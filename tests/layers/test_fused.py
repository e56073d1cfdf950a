"""The fused Triton kernels against the literal formula: outputs and all gradients.

On a CPU the kernels run in Triton's interpreter. It must be switched on before Triton is imported,
and would then hold for every other test, so those checks run in a process of their own: this file,
as a script.
"""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.rpe_cases import (
    GPU_CASES,
    TOLERANCE,
    assert_small,
    checkpointed,
    compiled,
    errors,
    make_inputs,
    run,
)

from lomar_det.layers.irpe.buckets import NUM_BUCKETS, TokenGrid

pytest.importorskip("triton")

from lomar_det.layers.irpe.fused import fused_rpe_attention, why_unsupported

pytestmark = pytest.mark.run

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
    assert_small(interpreted[name], TOLERANCE[CPU_CASES[name][-1]])


def test_a_table_may_keep_the_bucket_of_a_missing_class_token(interpreted):
    assert_small(interpreted["spare bucket, window"], TOLERANCE[torch.float16])
    assert_small(interpreted["spare bucket, grid"], TOLERANCE[torch.float32])


def test_operators_are_registered_as_they_should_be(interpreted):
    assert interpreted["opcheck"] == "passed"


def test_says_why_it_cannot_serve():
    grid = TokenGrid(7, 7)
    assert "float64" in why_unsupported(torch.zeros(1, 1, 49, 32, dtype=torch.float64), grid)
    assert "head_dim" in why_unsupported(torch.zeros(1, 1, 49, 160), grid)
    assert "cpu" in why_unsupported(torch.zeros(1, 1, 49, 32), grid)
    q = torch.zeros(1, 1, 49, 32)
    with pytest.raises(ValueError, match="matmul"):
        fused_rpe_attention(q, q, q, torch.zeros(32, 49), grid)


def test_is_what_fused_means(monkeypatch):
    module = importlib.import_module("lomar_det.layers.irpe.dispatch")  # not the function
    monkeypatch.setattr(module, "_why_not_fused", lambda *_: None)
    q = torch.zeros(1, 1, 49, 32)
    with pytest.raises(ValueError, match="CUDA.*matmul"):
        module.rpe_attention(q, q, q, torch.zeros(32, 49), TokenGrid(7, 7), "fused")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", GPU_CASES)
def test_matches_the_literal_formula_on_cuda(name, dtype):
    assert_small(errors((*GPU_CASES[name], dtype), fused_rpe_attention, "cuda"), TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["odd sides", "classification", "pretraining windows"])
def test_two_runs_agree_bit_for_bit(name):
    case = (*GPU_CASES[name], torch.bfloat16)
    inputs = make_inputs(*case, device="cuda")
    runs = [run(lambda *a: fused_rpe_attention(*a, case[3]), *inputs) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["edge windows", "classification", "small window"])
def test_compiles_without_a_graph_break_and_under_autocast(name):
    case = (*GPU_CASES[name], torch.float32)
    for a, b in zip(*compiled(case, fused_rpe_attention, "cuda"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
def test_activation_checkpointing_changes_nothing():
    case = (*GPU_CASES["classification"], torch.bfloat16)
    for a, b in zip(*checkpointed(case, fused_rpe_attention, "cuda"), strict=True):
        assert torch.equal(a, b)


def main() -> None:
    found = {name: errors(case, fused_rpe_attention) for name, case in CPU_CASES.items()}
    for name in ("window", "grid 14x14"):
        spare = errors(CPU_CASES[name], fused_rpe_attention, num_buckets=NUM_BUCKETS)
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
