"""The benchmark runs and reports what it measured."""

import pytest
import torch

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


@pytest.mark.gpu
def test_attention_on_a_gpu():
    backends = ["flash, no bias", "cuDNN, no bias", "fused", "matmul", "eager"]
    rows = check("cuda", backends)["rows"]
    assert all(row["graph_both"] > 0 for row in rows if row["backend"] == "fused")
