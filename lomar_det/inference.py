"""The old home of `lomar_det.detection.Predictor`."""

from .detection.predictor import Predictor

__all__ = ["Predictor"]
