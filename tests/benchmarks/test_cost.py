"""FLOPs against closed formulas; what the tool prints."""

import argparse
import runpy

import pytest
import torch
from helpers.common import ROOT, TINY_PRETRAIN
from torch.utils.flop_counter import FlopCounterMode

from lomar_det.benchmarks.cost import analyze, main
from lomar_det.errors import UserError
from lomar_det.layers import TokenGrid, rpe_attention
from lomar_det.modeling import LoMaRViT
from lomar_pretrain import MAE, LoMaR


def transformer_flops(tokens, dim, depth, buckets=0, sequences=1):
    """Closed formula: 12 C^2 multiply-adds a token for the linear layers, 2 N C for attention."""
    return 2 * sequences * depth * tokens * dim * (12 * dim + 2 * tokens + buckets)


SMALL = dict(patch_size=4, embed_dim=24, depth=3, num_heads=2)


@pytest.mark.parametrize("rel_pos", [True, False])
def test_lomar_is_the_closed_formula(rel_pos):
    positions = dict(rel_pos=rel_pos, abs_pos=not rel_pos)
    model = LoMaR(img_size=48, window_size=5, num_windows=3, **positions, **SMALL)
    costs = analyze(model, 48, 48)
    assert costs["blocks"].flops == transformer_flops(26, 24, 3, 50 * rel_pos, sequences=3)
    # embedding and prediction: 3 windows of 25 patches of 48 values
    assert costs["encoder_pred"].flops == 2 * 3 * 25 * 24 * 48
    assert costs["total"].flops == costs["blocks"].flops + 2 * costs["encoder_pred"].flops
    assert costs["encoder_pred"].activations == 3 * 25 * 48


@pytest.mark.parametrize("rel_pos, buckets", [("irpe", 49), ("none", 0)])
def test_backbone_is_the_closed_formula(rel_pos, buckets):
    """A grid of 6 x 7 tokens: two global blocks, and one in windows of 3 x 3 and 3 x 2 or padded"""
    model = LoMaRViT(window_size=3, window_block_indexes=[1], rel_pos=rel_pos, **SMALL)
    widths = (3, 2, 2) if rel_pos == "irpe" else (3, 3, 3)
    windows = sum(transformer_flops(3 * w, 24, 1, buckets, sequences=2) for w in widths)
    if rel_pos == "none":  # qkv and attention alone see the padding
        windows -= 2 * (6 * 9 - 6 * 7) * 24 * 24 * 9
    expected = transformer_flops(42, 24, 2, buckets) + windows
    assert analyze(model, 24, 28)["blocks"].flops == expected


def test_vit_b_pretraining_costs_what_is_published_for_its_blocks():
    """34.3 GFLOP for LoMaR and 19.1 for MAE at 224: the blocks alone, a multiply-add as two."""
    assert transformer_flops(50, 768, 12, sequences=4) / 1e9 == pytest.approx(34.3, abs=0.05)
    for size, published in ((224, 19.1), (384, 59.9), (448, 84.5)):
        patches = (size // 16) ** 2
        encoder = transformer_flops(patches // 4 + 1, 768, 12)
        decoder = transformer_flops(patches + 1, 512, 8)
        assert (encoder + decoder) / 1e9 == pytest.approx(published, abs=0.1)
    settings = SMALL | dict(decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
    costs = analyze(MAE(img_size=32, **settings), 32, 32)
    assert costs["blocks"].flops == transformer_flops(17, 24, 3)
    assert costs["decoder_blocks"].flops == transformer_flops(65, 16, 2)


@pytest.mark.parametrize("grid", [TokenGrid(7, 7, True), TokenGrid(9, 10)], ids=str)
def test_the_fused_kernels_count_as_the_literal_formula(grid):
    triton = pytest.importorskip("lomar_det.layers.irpe.fused")
    assert triton.MAX_WINDOW_TOKENS < 90
    q = torch.empty(2, 3, grid.num_tokens, 16, device="meta")
    table = torch.empty(16, 50, device="meta")
    with FlopCounterMode(display=False) as eager:
        rpe_attention(q, q, q, table, grid, "eager")
    name = "irpe_window" if grid.cls_token else "irpe_grid"
    with FlopCounterMode(display=False) as fused:
        getattr(torch.ops.lomar_det, name)(q, q, q, table, *grid)
    assert fused.get_total_flops() == eager.get_total_flops() > 0


def test_tables_of_a_detector_and_of_pretraining(capsys):
    def run(config, *opts, input_size=None):
        config = str(ROOT / "configs" / config)
        return main(argparse.Namespace(config_file=config, opts=opts, input_size=input_size))

    detector = "custom/mask_rcnn_lomar_vit_tiny.py"
    costs = run(detector, input_size=[96, 160])
    assert list(costs)[:4] == ["backbone", "feature pyramid", "proposals", "box head"]
    assert costs["total"].flops == sum(c.flops for name, c in costs.items() if name != "total")
    out = capsys.readouterr().out
    assert "roi_heads.mask_head" in out and "96 x 160" in out
    assert "\n3.8 million" in out
    boxes = run(detector, "model.roi_heads.mask_head=null", "model.roi_heads.mask_in_features=null")
    assert "mask head" not in boxes
    assert boxes["box head"] == costs["box head"] and boxes["backbone"] != costs["backbone"]
    with pytest.raises(UserError, match="--input-size 100 96.*112x96"):
        run(detector, input_size=[100, 96])
    with pytest.raises(UserError, match="--input-size"):
        run(detector, input_size=[-5, 3])
    with pytest.raises(UserError, match="run.py"):
        run("common/run.py")
    assert run("imagenet/linear_lomar_vit_tiny.py", input_size=[224, 224])["total"].flops > 0
    assert run("pretrain/lomar_vit_tiny.py", *TINY_PRETRAIN)["blocks"].flops > 0
    probe = run("imagenet/linear_lomar_vit_tiny.py", "model.encoder.depth=1", "model.num_classes=5")
    assert probe["head"].flops == 2 * 192 * 5


def test_the_command_takes_size_and_settings(monkeypatch, capsys):
    config = ROOT / "configs" / "pretrain" / "lomar_vit_tiny.py"
    arguments = ["--config-file", str(config), "--input-size", "80", "64", *TINY_PRETRAIN]
    monkeypatch.setattr("sys.argv", ["analyze_model.py", *arguments])
    runpy.run_path(str(ROOT / "tools" / "analyze_model.py"), run_name="__main__")
    assert "80 x 64" in capsys.readouterr().out
