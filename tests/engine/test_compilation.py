"""Compiled blocks compute what eager ones do."""

import pytest
import torch

from lomar_det.engine.compilation import compile_blocks
from lomar_det.layers import Block, TokenGrid
from lomar_pretrain import LoMaR


@pytest.fixture
def dynamo():
    """Traces with autograd, without generating code: that would need a C++ compiler."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        compile = Block.compile
        options = dict(backend="aot_eager", fullgraph=True)
        patch.setattr(Block, "compile", lambda self: compile(self, **options))
        yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def loss_and_gradients(model, images):
    torch.manual_seed(0)
    model.zero_grad()
    loss = model(images).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def test_losses_and_gradients_are_the_same_with_one_graph_for_all_blocks(dynamo):
    model = LoMaR(img_size=64, embed_dim=32, depth=3, num_heads=2, window_size=3, num_windows=2)
    images, names = torch.randn(4, 3, 64, 64), list(model.state_dict())
    loss, gradients = loss_and_gradients(model, images)
    assert compile_blocks(model) == 3
    compiled_loss, compiled = loss_and_gradients(model, images)
    assert dynamo["stats"]["unique_graphs"] == 1 and not dynamo["graph_break"]
    assert list(model.state_dict()) == names
    torch.testing.assert_close(compiled_loss, loss)
    torch.testing.assert_close(compiled, gradients)


@pytest.mark.parametrize("options", [{"rel_pos": "decomposed"}, {"rel_pos": "irpe"}])
def test_windowed_blocks_compile_without_a_break(dynamo, options):
    block = Block(32, 2, window_size=4, input_size=(4, 4), num_buckets=49, **options)
    x, grid = torch.randn(2, 7 * 9, 32), TokenGrid(7, 9)
    expected = block(x, grid)
    compile_blocks(block)
    torch.testing.assert_close(block(x, grid), expected)
    assert dynamo["stats"]["unique_graphs"] == 1 and not dynamo["graph_break"]
