"""The detector: trained, evaluated, applied to images."""

from ..compat import require_detectron2

require_detectron2()

from .predictor import Predictor

__all__ = ["Predictor"]
