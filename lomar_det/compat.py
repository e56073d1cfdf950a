"""Looks for a detectron2 that has ViTDet: imports what is needed, compares no versions."""

import importlib.util
import warnings

_REMEDY = (
    "Install a current one, either from its repository (pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git') or as LoMaR-Det's "
    "tools/setup_env.sh does it (README, 'Installing detectron2')."
)


def _find_problem() -> str | None:
    if importlib.util.find_spec("detectron2") is None:
        return f"lomar_det: detectron2 is not installed. {_REMEDY}"
    # torch warns of what detectron2 uses; users cannot change that.
    warnings.filterwarnings("ignore", message="`torch.jit.script.*` is deprecated")
    try:
        from detectron2.config import LazyConfig  # noqa: F401
        from detectron2.modeling import SimpleFeaturePyramid, ViT  # noqa: F401
    except Exception as error:  # an old detectron2 may fail in many ways
        return (
            f"lomar_det: the installed detectron2 cannot be used ({error}): it is too old to have "
            f"ViTDet, or a package that it needs is missing or too new. {_REMEDY}"
        )
    return None


problem = _find_problem()  # None, or one sentence with the remedy


def require_detectron2() -> None:
    """Raises ImportError with the remedy if detectron2 with ViTDet is not there."""
    if problem is not None:
        raise ImportError(problem)
