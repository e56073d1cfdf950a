"""Stochastic depth: against timm's, with the same random numbers."""

import pytest
import torch
from timm.layers.drop import drop_path as timm_drop_path

from lomar_det.layers import DropPath, build_blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7])
def test_is_timms_to_the_bit(rate, dtype):
    module = DropPath(rate).train()
    x = torch.randn(64, 5, 3, dtype=dtype, requires_grad=True)
    found = []
    for drop in (module, lambda x: timm_drop_path(x, rate, training=True)):
        torch.manual_seed(7)
        out = drop(x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        found.append((out, gradient, torch.rand(1)))  # the last: how many numbers were drawn
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert bool((found[0][0] == 0).all(dim=(1, 2)).any()) == (rate > 0)


def test_evaluation_is_the_identity_and_checkpoints_have_no_new_key():
    module, x = DropPath(0.5).eval(), torch.randn(8, 3)
    assert module(x) is x and not module.state_dict()


def test_a_compiled_graph_drops_the_same_share():
    module = torch.compile(DropPath(0.25).train(), backend="eager", fullgraph=True)
    out = module(torch.ones(20_000, 2))
    kept = out[:, 0] != 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / 0.75))
    assert (out[~kept] == 0).all() and 0.73 < kept.float().mean() < 0.77


def test_a_rate_of_one_is_refused():
    with pytest.raises(ValueError, match="1.0"):
        DropPath(1.0)


def test_the_rate_grows_linearly_with_depth():
    blocks = build_blocks(5, 0.2, dim=8, num_heads=1)
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    blocks = build_blocks(2, dim=8, num_heads=1)
    assert not any(isinstance(block.drop_path, DropPath) for block in blocks)
