"""The old home of `lomar_det.detection.Predictor`."""

from .detection.from_checkpoint import find_categories, follow_checkpoint, load_detector
from .detection.predictor import Predictor

__all__ = ["Predictor", "find_categories", "follow_checkpoint", "load_detector"]
