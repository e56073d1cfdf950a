"""The benchmarks run and report what they measured; the slow twin of pretraining."""

import runpy
import sys

import pytest
import torch
from common import ROOT

from lomar_det.benchmarks import format_rows
from lomar_det.benchmarks.attention import TINY_CASES, benchmark_attention, format_table
from lomar_det.benchmarks.detection import benchmark_detection
from lomar_pretrain import LoMaR
from lomar_pretrain.benchmarks import (
    CASES,
    LOADER_COLUMNS,
    STEP_COLUMNS,
    benchmark_loader,
    benchmark_pretrain,
)
from lomar_pretrain.usual import UsualLoMaR


def check(device, backends):
    result = benchmark_attention(torch.device(device), tiny=True)
    assert [row["backend"] for row in result["rows"]] == backends
    for row in result["rows"]:
        assert row["case"] in TINY_CASES and row["both"] > 0 and row["forward"] > 0
        assert row["spread"][0] <= row["both"] <= row["spread"][1]
    assert all(name in format_table(result) for name in backends)
    return result


def test_attention_on_a_cpu():
    assert "peak_gib" not in check("cpu", ["matmul", "eager"])["rows"][0]


def test_a_file_that_cannot_be_written_is_named_before_measuring(tmp_path, monkeypatch, capsys):
    tool = ROOT / "tools" / "benchmark.py"
    monkeypatch.setattr(sys, "argv", [str(tool), "attention", "--tiny", "--json", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(tool), run_name="__main__")
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out and f"error: --json {tmp_path} cannot be" in err


@pytest.mark.gpu
def test_attention_on_a_gpu():
    backends = ["flash, no bias", "cuDNN, no bias", "fused", "flex", "matmul", "eager"]
    rows = check("cuda", backends)["rows"]
    assert all(row["graph_both"] > 0 for row in rows if row["backend"] == "fused")


def test_pretraining_steps_on_a_cpu():
    result = benchmark_pretrain(torch.device("cpu"), tiny=True)
    assert [row["case"] for row in result["rows"]] == list(CASES)
    assert all(row["ms"] > 0 and row["TFLOP/s"] > 0 for row in result["rows"])
    assert result["rows"][0]["x usual"] == 1.0
    assert all(case in format_rows(result, STEP_COLUMNS) for case in CASES)


def test_loader_tells_the_cores_that_a_step_needs():
    result = benchmark_loader(num_workers=0, images_per_second=1000, tiny=True)
    for row in result["rows"]:
        assert row["cores"] == pytest.approx(1000 / row["img/s"])
    assert "cores" in format_rows(result, LOADER_COLUMNS)


def test_detection_next_to_detectron2():
    rows = benchmark_detection(torch.device("cpu"), tiny=True)["rows"]
    assert [row["model"] for row in rows] == ["detectron2", "lomar_det"] * 3
    assert all(row["ms"] > 0 for row in rows)
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        assert ours["x detectron2"] == pytest.approx(ours["img/s"] / theirs["img/s"])


@pytest.mark.parametrize("abs_pos", [False, True])
def test_the_usual_code_gives_the_same_loss_and_gradients(abs_pos):
    options = dict(img_size=64, embed_dim=32, depth=2, num_heads=2, window_size=3)
    options |= dict(abs_pos=abs_pos, rel_pos=not abs_pos)
    model = LoMaR(**options)
    usual = UsualLoMaR(**options, attention_backend="eager")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    usual.load_state_dict(model.state_dict())
    images, noise = torch.randn(3, 3, 64, 64), torch.rand(3, *model.noise_shape)
    losses = [m(images, noise=noise).loss for m in (model, usual)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, parameter), twin in zip(model.named_parameters(), usual.parameters(), strict=True):
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-4, atol=1e-6, msg=name)
