"""Measuring speed: attention and the detector here, pretraining in `lomar_pretrain.benchmarks`."""

from .attention_speed import benchmark_attention, format_table
from .plot import plot_result
from .timing import describe_machine, format_rows, matrix_rate, measure_step, saved_megabytes

__all__ = [
    "benchmark_attention",
    "describe_machine",
    "format_rows",
    "format_table",
    "matrix_rate",
    "measure_step",
    "plot_result",
    "saved_megabytes",
]
