"""LoMaR pretraining: windows, models, image data and the run.

Models and data need no detectron2; `pretrain` and `load_pretrained` do.
"""

import warnings

with warnings.catch_warnings():
    # Only runs and checkpoints need detectron2; lomar_det.engine says so when it is imported.
    warnings.filterwarnings("ignore", message="lomar_det: ")
    import lomar_det  # noqa: F401

from .models.classifier import VisionTransformerClassifier
from .models.encoder import VisionTransformerEncoder
from .models.lomar import LoMaR, LoMaROutput
from .models.mae import MAE, MAEOutput
from .models.timm_vit import LoMaRVisionTransformer
from .models.window_sampling import WindowSample, sample_windows

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
    # reading checkpoints and training need detectron2
    if name == "load_pretrained":
        from .models.from_checkpoint import load_pretrained

        return load_pretrained
    if name == "pretrain":
        from .runs.pretrain import pretrain

        return pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
