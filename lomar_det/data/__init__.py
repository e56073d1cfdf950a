"""COCO-format data of one's own: registered, checked, and loaded so that a run can resume."""

from ..compat import require_detectron2

require_detectron2()

from .coco import CocoSummary, read_coco_summary, register_coco
from .loader import build_train_loader
from .mapper import RGBDatasetMapper
from .setup import configure_data

__all__ = [
    "CocoSummary",
    "RGBDatasetMapper",
    "build_train_loader",
    "configure_data",
    "read_coco_summary",
    "register_coco",
]
