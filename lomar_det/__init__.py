"""LoMaR-Det: from unlabelled images to a detector, as a detectron2 plugin.

``import lomar_det`` registers the backbones in detectron2. `lomar_det.layers` is pure PyTorch and
works without detectron2; everything else needs it, any version that has ViTDet.
"""

import warnings

from . import compat

__version__ = "0.1.0"

if compat.problem is None:
    from . import modeling  # registers the backbones
else:
    warnings.warn(compat.problem, stacklevel=2)


def __getattr__(name: str):
    if name == "modeling" and compat.problem is not None:
        raise ImportError(compat.problem)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
