"""LoMaR pretraining: windows, models, image data and the run.

Models and data need no detectron2.
"""

import warnings

with warnings.catch_warnings():
    # Only `lomar_pretrain.engine` needs detectron2; lomar_det.engine says so when it is imported.
    warnings.filterwarnings("ignore", message="lomar_det: ")
    import lomar_det  # noqa: F401

from .classifier import VisionTransformerClassifier
from .lomar import LoMaR, LoMaROutput
from .mae import MAE, MAEOutput
from .timm_models import LoMaRVisionTransformer
from .windows import WindowSample, sample_windows

__all__ = [
    "MAE",
    "LoMaR",
    "LoMaROutput",
    "LoMaRVisionTransformer",
    "MAEOutput",
    "VisionTransformerClassifier",
    "WindowSample",
    "sample_windows",
]
