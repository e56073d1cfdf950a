"""iRPE by FlexAttention against the literal formula: outputs and all gradients.

On a CPU torch computes FlexAttention densely and refuses its backward pass, though it has one. The
gradients are tested with that lock off, compiled as on a GPU but for the kernels in the end.
"""

import importlib
from types import SimpleNamespace

import pytest
import torch
from rpe_cases import (
    GPU_CASES,
    TOLERANCE,
    assert_small,
    checkpointed,
    compiled,
    errors,
    make_inputs,
    run,
)
from torch._dynamo.testing import CompileCounterWithBackend

from lomar_det.layers import Attention, Block, TokenGrid, rpe_attention
from lomar_det.layers import rpe_attention_flex as flex
from lomar_det.layers.rpe_attention import pick_backend
from lomar_det.layers.rpe_attention_flex import flex_rpe_attention

# in `lomar_det.layers` and `torch.nn.attention`, functions of the same name may hide these modules
rpe_attention_module = importlib.import_module("lomar_det.layers.rpe_attention")
torch_flex_module = importlib.import_module("torch.nn.attention.flex_attention")

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

CPU_CASES = {
    "not square": (2, 2, 8, TokenGrid(5, 9)),
    "square": (1, 2, 16, TokenGrid(14, 14)),
    "class token": (2, 2, 8, TokenGrid(7, 7, True)),
    "one column, all distances": (1, 1, 8, TokenGrid(37, 1)),
}


@pytest.fixture
def choices(monkeypatch):
    """The log lines about the choice of backends, as if none had been made before."""
    lines = []
    logger = SimpleNamespace(info=lambda text, *args: lines.append(text % args))
    monkeypatch.setattr(rpe_attention_module, "logger", logger)
    monkeypatch.setattr(rpe_attention_module, "_logged", set())
    return lines


@pytest.fixture
def trainable(monkeypatch):
    """Takes the path of a GPU on a CPU; counts compilations."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(flex.flex_attention, backend=counter, fullgraph=True)
    monkeypatch.setattr(flex, "_compiled_flex_attention", compiled)
    monkeypatch.setattr(flex, "_FORWARD_ONLY", ())
    monkeypatch.setattr(torch_flex_module, "_validate_device", lambda *_: None, raising=False)
    torch.compiler.reset()
    return counter


@pytest.mark.parametrize("name", CPU_CASES)
def test_matches_the_literal_formula(name, trainable):
    assert_small(errors((*CPU_CASES[name], torch.float64), flex_rpe_attention), 1e-12)
    assert trainable.frame_count == 1


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_matches_the_literal_formula_in_lower_precision(dtype, trainable):
    assert_small(errors((*CPU_CASES["class token"], dtype), flex_rpe_attention), TOLERANCE[dtype])


def test_a_table_may_keep_the_bucket_of_a_missing_class_token(trainable):
    case = (*CPU_CASES["not square"], torch.float64)
    assert_small(errors(case, flex_rpe_attention, num_buckets=50), 1e-12)


@pytest.mark.parametrize("name", CPU_CASES)
def test_dense_on_a_cpu(name):
    grid = CPU_CASES[name][3]
    qkv, table, _ = make_inputs(*CPU_CASES[name], torch.float64)
    inputs = (*qkv.permute(2, 0, 3, 1, 4), table, grid)
    torch.testing.assert_close(flex_rpe_attention(*inputs), rpe_attention(*inputs, "eager"))


def test_activation_checkpointing_changes_nothing(trainable):
    case = (*CPU_CASES["class token"], torch.float32)
    for a, b in zip(*checkpointed(case, flex_rpe_attention), strict=True):
        assert torch.equal(a, b)


def test_autocast_is_the_same_as_inputs_in_half_precision():
    case = (*CPU_CASES["class token"], torch.float32)
    qkv, table, _ = make_inputs(*case)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flex_rpe_attention(q, k, v, table, case[3])
    expected = flex_rpe_attention(*(t.bfloat16() for t in (q, k, v)), table, case[3])
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)


@pytest.mark.filterwarnings("ignore:.*functools.lru_cache")  # see `compile_blocks`
def test_becomes_part_of_a_compiled_block(trainable, choices):
    block, x = Block(32, 2, backend="flex").double(), torch.randn(2, 35, 32).double()
    twin = Block(32, 2, backend="eager").double()
    torch.nn.init.normal_(block.attn.rpe_k.lookup_table_weight)
    twin.load_state_dict(block.state_dict())
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for module in (compiled, twin):
        module(x, TokenGrid(5, 7)).square().sum().backward()
    for a, b in zip(block.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert choices == [f"iRPE attention: backend {b} (asked for)" for b in ("flex", "eager")]
    assert trainable.frame_count == 0  # not a graph of its own


def test_many_sizes_need_few_compilations(trainable):
    """A detector's: four shapes of windows and whole grids of any size, one picture or more."""
    sides = [(3, 3), (3, 4), (4, 3), (4, 4), (8, 9), (7, 6)]
    for batch in (2, 1):
        for side in sides:
            assert_small(
                errors((batch, 2, 8, TokenGrid(*side), torch.float64), flex_rpe_attention), 1e-12
            )
    assert trainable.frame_count <= 4


def test_training_after_inference_mode(trainable, choices):
    grid = TokenGrid(5, 31)  # of no other test
    module, x = Attention(16, 2, backend="flex"), torch.randn(1, grid.num_tokens, 16)
    with torch.inference_mode():
        module(x, grid)
    module(x, grid).sum().backward()
    assert module.qkv.weight.grad.isfinite().all()
    assert choices == ["iRPE attention: backend flex (asked for)"]


def test_training_on_a_cpu_is_refused():
    q, table = torch.randn(1, 1, 6, 8), torch.randn(8, 49, requires_grad=True)
    with pytest.raises(ValueError, match="no backward pass on cpu; use .* 'matmul' or 'eager'"):
        flex_rpe_attention(q, q, q, table, TokenGrid(2, 3))


@pytest.mark.parametrize(
    "backend, reason", [("flex", "no backward pass on cpu"), ("fused", "fused kernel")]
)
def test_where_what_was_asked_for_cannot_serve_another_does(backend, reason, choices):
    """Also with activation checkpointing, where training by flex would go wrong."""
    case = (*CPU_CASES["class token"], torch.float32)
    inputs = make_inputs(*case)
    expected = run(lambda *a: rpe_attention(*a, case[3], "eager"), *inputs)
    found, again = checkpointed(case, lambda *a: rpe_attention(*a, backend))
    for a, b, c in zip(expected, found, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert choices[0] == "iRPE attention: backend eager (asked for)" and len(choices) == 2
    assert choices[1].startswith("iRPE attention: backend eager (") and reason in choices[1]


def test_without_gradients_flex_serves_on_a_cpu(choices):
    module, x = Attention(16, 2, backend="flex"), torch.randn(1, 6, 16)
    with torch.no_grad():
        module(x, TokenGrid(2, 3))
    module(x, TokenGrid(2, 3))
    assert [line.split()[3] for line in choices] == ["flex", "eager"]


@pytest.mark.parametrize(
    "dtype, head_dim, words", [(torch.float64, 64, "float64"), (torch.float32, 8, "head_dim 16")]
)
def test_says_why_it_cannot_serve_on_cuda(dtype, head_dim, words, monkeypatch):
    monkeypatch.setattr(flex, "_HAS_TRITON", True)
    assert words in flex.why_unsupported(*cuda_inputs(4, dtype, head_dim))
    assert flex.why_unsupported(*cuda_inputs(4, torch.float32, 160)) is None
    monkeypatch.setattr(flex, "_TRAINS_INSIDE_A_GRAPH", False)
    assert flex.why_unsupported(*cuda_inputs(4)) is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert "torch 2.9" in flex.why_unsupported(*cuda_inputs(4))
    monkeypatch.setattr(flex, "_HAS_TRITON", False)
    assert "Triton" in flex.why_unsupported(*cuda_inputs(4))


def test_says_that_it_does_not_know_a_device():
    q, table = torch.empty(1, 1, 6, 8, device="meta"), torch.empty(8, 49, device="meta")
    assert "meta" in flex.why_unsupported(q, q, q, table)
    assert rpe_attention(q, q, q, table, TokenGrid(2, 3), "flex").shape == q.shape


def cuda_inputs(num_tokens, dtype=torch.float16, head_dim=64):
    """What the choice of a backend looks at of q, k, v and the table, without a GPU."""
    tensor = SimpleNamespace(
        requires_grad=True,
        is_cuda=True,
        device=torch.device("cuda", 0),
        shape=torch.Size((2, 12, num_tokens, head_dim)),
        dtype=dtype,
        element_size=lambda: dtype.itemsize,
    )
    return [tensor] * 4


@pytest.mark.parametrize(
    "gpu_gib, side, dtype, choice",
    [
        (16, 64, torch.float16, "matmul"),  # a bias of 0.75 GiB
        (4, 64, torch.float16, "flex"),
        (40, 128, torch.float16, "flex"),  # of 12 GiB
        (40, 128, torch.float64, "matmul"),  # flex has none
    ],
)
@pytest.mark.parametrize("asked", ["auto", "fused"])
def test_flex_serves_instead_of_fused_where_a_bias_would_fill_the_gpu(
    asked, gpu_gib, side, dtype, choice, monkeypatch, choices
):
    monkeypatch.setattr(rpe_attention_module, "_why_not_fused", lambda *_: "an old GPU")
    monkeypatch.setattr(rpe_attention_module, "_gpu_memory", lambda _: gpu_gib * 2**30)
    monkeypatch.setattr(flex, "_HAS_TRITON", True)
    assert pick_backend(*cuda_inputs(side**2, dtype), TokenGrid(side, side), asked) == choice
    assert len(choices) == 1 and f"backend {choice} (an old GPU" in choices[0]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", GPU_CASES)
def test_compiled_matches_the_literal_formula_on_cuda(name, dtype):
    torch.compiler.reset()  # compiled for these sizes; the next test is about sizes that change
    assert_small(errors((*GPU_CASES[name], dtype), flex_rpe_attention, "cuda"), TOLERANCE[dtype])


@pytest.mark.gpu
def test_compiled_serves_sizes_that_change_on_cuda():
    torch.compiler.reset()
    for side in ((13, 13), (13, 12), (12, 13), (12, 12), (40, 23), (31, 17), (64, 50)):
        case = (2, 2, 64, TokenGrid(*side), torch.float32)
        assert_small(errors(case, flex_rpe_attention, "cuda"), TOLERANCE[torch.float32])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["edge windows", "classification", "small window"])
def test_compiles_without_a_graph_break_and_under_autocast(name):
    case = (*GPU_CASES[name], torch.float32)
    for a, b in zip(*compiled(case, flex_rpe_attention, "cuda"), strict=True):
        assert ((a - b).norm() / a.norm()).item() < TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
def test_activation_checkpointing_changes_nothing_on_cuda():
    case = (*GPU_CASES["classification"], torch.bfloat16)
    for a, b in zip(*checkpointed(case, flex_rpe_attention, "cuda"), strict=True):
        # not bit for bit: the gradient of the lookup is added up in no fixed order
        assert ((a - b).norm() / a.norm()).item() < TOLERANCE[torch.bfloat16]
