"""Attention: the fast paths against loops over pairs, gradients included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lomar_det.layers import Attention, Block, TokenGrid, bucket_table, rpe_attention
from lomar_det.layers.attention_windows import strips
from lomar_det.layers.irpe.buckets import _grid_buckets
from lomar_det.layers.irpe.dense import cached_one_hot_sides

GRIDS = [TokenGrid(7, 7, True), TokenGrid(5, 9), TokenGrid(14, 14), TokenGrid(3, 2, True)]


def random_inputs(grid, head_dim=8, batch=2, heads=2):
    shape = (batch, heads, grid.num_tokens, head_dim)
    qkv = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    table = torch.randn(head_dim, 50, dtype=torch.float64, requires_grad=True)
    return *qkv, table


def literal_attention(q, k, v, table, grid):
    """Pair by pair, head by head: q is scaled in the first term only."""
    buckets = bucket_table(grid)
    out = torch.zeros_like(v)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            logits = torch.stack(
                [
                    torch.stack(
                        [
                            q[b, h, i] @ k[b, h, j] / q.shape[-1] ** 0.5
                            + q[b, h, i] @ table[:, buckets[i, j]]
                            for j in range(grid.num_tokens)
                        ]
                    )
                    for i in range(grid.num_tokens)
                ]
            )
            out[b, h] = logits.softmax(-1) @ v[b, h]
    return out


def gradients(out, inputs):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weight).sum(), inputs)


def test_eager_is_the_literal_formula():
    grid = TokenGrid(3, 4, True)
    inputs = random_inputs(grid)
    out, expected = rpe_attention(*inputs, grid, "eager"), literal_attention(*inputs, grid)
    torch.testing.assert_close(out, expected)
    pairs = zip(gradients(out, inputs), gradients(expected, inputs), strict=True)
    for gradient, reference in pairs:
        torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_matmul_equals_eager(grid):
    inputs = random_inputs(grid)
    out, expected = (rpe_attention(*inputs, grid, backend) for backend in ("matmul", "eager"))
    torch.testing.assert_close(out, expected)
    pairs = zip(gradients(out, inputs), gradients(expected, inputs), strict=True)
    for gradient, reference in pairs:
        torch.testing.assert_close(gradient, reference)


def test_query_is_not_scaled_in_the_relative_term():
    """With one informative bucket the logit is q . R itself, not q . R / sqrt(head_dim)."""
    grid, head_dim = TokenGrid(1, 2), 64
    q = torch.ones(1, 1, 2, head_dim, dtype=torch.float64)
    table = torch.zeros(head_dim, 49, dtype=torch.float64)
    table[:, bucket_table(grid)[0, 1]] = 1 / head_dim  # q . R = 1 for query 0, key 1
    v = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(1, 1, 2, 1)
    out = rpe_attention(q, torch.zeros_like(q), v, table, grid, "eager")
    assert out[0, 0, 0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item())


CUTS = {3: [3], 4: [4], 5: [3, 2], 8: [4, 4], 9: [3, 3, 3], 11: [4, 4, 3]}


@pytest.mark.parametrize("height, width", [(8, 8), (9, 5), (4, 4), (3, 11)])
def test_windows_cover_the_grid_evenly_and_do_not_mix(height, width):
    """Against a loop over windows, each attended to on its own."""
    size, dim = 4, 16
    windowed = Attention(dim, 2, window_size=size).double()
    torch.nn.init.normal_(windowed.rpe_k.lookup_table_weight)
    whole = Attention(dim, 2).double()
    whole.load_state_dict(windowed.state_dict())
    x = torch.randn(2, height * width, dim, dtype=torch.float64, requires_grad=True)
    out = windowed(x, TokenGrid(height, width))
    rows = []
    for row in x.view(2, height, width, dim).split(CUTS[height], dim=1):
        cells = []
        for cell in row.split(CUTS[width], dim=2):
            h, w = cell.shape[1:3]
            attended = whole(cell.reshape(2, h * w, dim), TokenGrid(h, w))
            cells.append(attended.view(2, h, w, dim))
        rows.append(torch.cat(cells, dim=2))
    expected = torch.cat(rows, dim=1).view_as(out)
    torch.testing.assert_close(out, expected)
    ours, theirs = (
        gradients(o, [x, *m.parameters()]) for o, m in ((out, windowed), (expected, whole))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@given(st.integers(1, 200), st.integers(1, 40))
def test_strips_cut_any_side_into_few_even_windows(size, window_size):
    cuts = list(strips(size, window_size))
    sides = [side for part, side in cuts for _ in range((part.stop - part.start) // side)]
    assert sum(sides) == size and max(sides) <= window_size and max(sides) - min(sides) <= 1
    assert len(sides) == -(-size // window_size) and len(cuts) <= 2


@pytest.mark.parametrize("height, width", [(2, 3), (8, 8), (9, 5), (13, 4)])
@pytest.mark.parametrize("window_size", [0, 4])
def test_what_is_recorded_for_export_equals_the_normal_path(
    height, width, window_size, monkeypatch
):
    attention = Attention(16, 2, window_size=window_size).double()
    torch.nn.init.normal_(attention.rpe_k.lookup_table_weight)
    x = torch.randn(3, height * width, 16, dtype=torch.float64)
    expected = attention(x, TokenGrid(height, width))
    caches = cached_one_hot_sides.cache_info(), _grid_buckets.cache_info()
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    torch.testing.assert_close(attention(x, TokenGrid(height, width)), expected)
    # what is made while recording must not be found by anybody else
    assert caches == (cached_one_hot_sides.cache_info(), _grid_buckets.cache_info())


class OfGrid(torch.nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):  # (B, H, W, C)
        return self.attention(x.flatten(1, 2), TokenGrid(*x.shape[1:3]))


@pytest.mark.parametrize("window_size", [0, 3])
def test_one_exported_graph_serves_all_sizes(window_size):
    model = OfGrid(Attention(8, 2, window_size=window_size))
    torch.nn.init.normal_(model.attention.rpe_k.lookup_table_weight)
    sizes = {i: torch.export.Dim(name, min=4) for i, name in ((1, "rows"), (2, "columns"))}
    program = torch.export.export(
        model, (torch.randn(2, 7, 5, 8),), dynamic_shapes=({0: torch.export.Dim("batch")} | sizes,)
    )
    for shape in ((1, 4, 9, 8), (3, 11, 6, 8), (2, 7, 5, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), model(x))


def test_compiles_without_a_graph_break():
    block, x = Block(32, 2, window_size=3), torch.randn(2, 35, 32)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, TokenGrid(5, 7)), block(x, TokenGrid(5, 7)))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"backend": "magic"}, "magic"),
        ({"rel_pos": "sinus"}, "sinus"),
        ({"num_heads": 5}, "num_heads.* 5"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        Attention(**({"dim": 16, "num_heads": 2} | arguments))


@pytest.mark.parametrize("backend", ["eager", "matmul"])
def test_training_after_inference_mode(backend):
    """Tables are kept: those of a detection serve the training that follows in the process."""
    grid = TokenGrid(5, 31)  # of no other test
    module, x = Attention(16, 2, backend=backend), torch.randn(1, grid.num_tokens, 16)
    with torch.inference_mode():
        module(x, grid)
    module(x, grid).sum().backward()
    assert module.qkv.weight.grad.isfinite().all()


def test_wrong_number_of_tokens_is_refused():
    q, k, v, table = random_inputs(TokenGrid(3, 3))
    with pytest.raises(ValueError, match="TokenGrid"):
        rpe_attention(q, k, v, table, TokenGrid(3, 3, True))


def test_class_token_needs_its_bucket():
    grid = TokenGrid(2, 2, True)
    q, k, v, table = random_inputs(grid)
    with pytest.raises(ValueError, match=" 49"):
        rpe_attention(q, k, v, table[:, :49], grid)


def test_block_runs_in_bf16_autocast():
    block = Block(32, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = block(torch.randn(2, 50, 32), TokenGrid(7, 7, True))
    assert out.isfinite().all()
