"""LoMaR pretraining: windows, models, image data and the run.

Models and data need no detectron2; `pretrain` and `load_pretrained` do.
"""

import warnings

with warnings.catch_warnings():
    # Only runs and checkpoints need detectron2; lomar_det.engine says so when it is imported.
    warnings.filterwarnings("ignore", message="lomar_det: ")
    import lomar_det  # noqa: F401

from .api import pretrain
from .classifier import VisionTransformerClassifier
from .encoder import VisionTransformerEncoder
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
    "VisionTransformerEncoder",
    "WindowSample",
    "load_pretrained",
    "pretrain",
    "sample_windows",
]


def __getattr__(name: str):
    if name == "load_pretrained":  # reading checkpoints needs detectron2
        from .checkpoint import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
