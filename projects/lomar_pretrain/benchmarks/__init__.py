"""How fast pretraining steps, and how fast images are loaded."""

from .loader_speed import LOADER_COLUMNS, benchmark_loader
from .pretrain_speed import STEP_COLUMNS, benchmark_pretrain

__all__ = ["LOADER_COLUMNS", "STEP_COLUMNS", "benchmark_loader", "benchmark_pretrain"]
