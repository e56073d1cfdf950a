"""The benchmark runs and reports what it measured."""

import runpy
import sys

import pytest
import torch
from common import ROOT

from lomar_det.benchmarks.attention import TINY_CASES, benchmark_attention, format_table


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
    backends = ["flash, no bias", "cuDNN, no bias", "fused", "matmul", "eager"]
    rows = check("cuda", backends)["rows"]
    assert all(row["graph_both"] > 0 for row in rows if row["backend"] == "fused")
