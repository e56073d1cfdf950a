"""Compiled blocks compute what eager ones do."""

import pytest
import torch

from lomar_det.config.settings import RunSettings
from lomar_det.engine import Run, build_trainer
from lomar_det.engine.compilation import compile_blocks
from lomar_det.layers import Block, TokenGrid
from lomar_det.modeling import LoMaRViT
from lomar_pretrain import LoMaR

pytestmark = pytest.mark.run


@pytest.fixture
def dynamo():
    """Traces with autograd, without generating code: that would need a C++ compiler."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        compile = Block.compile
        options = dict(backend="aot_eager", fullgraph=True)
        patch.setattr(Block, "compile", lambda self, **_: compile(self, **options))
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


def test_a_detector_needs_one_graph_for_each_kind_of_block(dynamo, monkeypatch):
    """Stochastic depth differs from block to block, and still makes no graph of its own."""
    config = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    monkeypatch.setattr(config, name, 1_000_000)  # what importing timm.optim leaves
    monkeypatch.setattr(config, "fail_on_recompile_limit_hit", True)
    backbone = LoMaRViT(
        patch_size=8,
        embed_dim=32,
        depth=12,
        num_heads=2,
        window_size=3,
        drop_path_rate=0.1,
    )
    images = torch.randn(2, 3, 56, 56)
    assert compile_blocks(backbone) == 12
    assert getattr(config, name) < 100
    for _ in range(2):
        backbone.train()(images)["last_feat"].sum().backward()
    assert dynamo["stats"]["unique_graphs"] == 2  # window and global attention
    with torch.no_grad():
        backbone.eval()(images)
    assert dynamo["stats"]["unique_graphs"] <= 4


def test_a_compiled_model_trains_averages_and_saves_as_another(dynamo, tmp_path):
    images = torch.randn(4, 3, 64, 64)

    def losses(model, batch):
        return {"loss": model(batch).loss}

    def trainer(compile):
        torch.manual_seed(0)
        model = LoMaR(img_size=64, embed_dim=32, depth=2, num_heads=2, window_size=3)
        settings = RunSettings(compile=compile, ema_decay=0.9, log_period=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = Run(settings, torch.device("cpu"), torch.float32)
        trainer = build_trainer(run, model, optimizer, losses)
        trainer.data_loader = [images]
        torch.manual_seed(1)
        trainer.train(0, 1)
        return trainer

    compiled, eager = trainer(True), trainer(False)
    assert dynamo["stats"]["unique_graphs"] == 1
    for part in ("model", "eval_model"):
        state = getattr(compiled, part).state_dict()
        torch.testing.assert_close(state, getattr(eager, part).state_dict())
