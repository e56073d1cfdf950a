"""Images and COCO-format data: found, opened, checked, and streamed so that a run can resume.

What needs detectron2 is imported when it is asked for: opening and streaming images do not.
"""

import importlib

_MODULES = {
    "CocoSummary": "coco",
    "RGBDatasetMapper": "mapper",
    "Tiles": "tiles.tiled_dataset",
    "build_train_loader": "loader",
    "configure_data": "configure",
    "read_coco_summary": "coco",
    "register_coco": "coco",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..compat import require_detectron2

    require_detectron2()
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
