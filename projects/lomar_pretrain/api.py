"""`pretrain`: the run of `tools/pretrain.py` as a function, for notebooks and scripts."""

from collections.abc import Sequence
from os import fspath
from pathlib import Path
from typing import Any

MAIN_RECIPE = "lomar_vit_b_224_1600ep"


def pretrain(
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    config: str | Path = MAIN_RECIPE,
    resume: bool = False,
    **overrides: Any,
) -> Path:
    """Pretrains on unlabelled pictures in this process; the same run as the tool's.

    One process on one device; for several GPUs, use the tool. It seeds the global random
    generators. Needs detectron2.

    Example::

        from lomar_pretrain import pretrain

        backbone = pretrain(
            data="IMAGES",
            output="output/mine",
            config="lomar_vit_tiny",
            train={"epochs": 10, "warmup_epochs": 1},
            **{"model.num_windows": 2, "data.flip": True},
        )

    Args:
        data: Folder of pictures, searched recursively, or several of them.
        output: Folder for checkpoints, logs and pictures.
        config: A recipe's name (a file in ``configs/pretrain/``) or the path of a config file.
        resume: Continue from the last checkpoint in ``output``.
        overrides: Settings of the config: sections as dicts, or single ones with dots.

    Returns:
        The path of ``backbone_final.pth``, for the next stage.

    Raises:
        UserError: anything the user can mend.
    """
    from lomar_det.engine.config import find_config, load_config, set_option

    from .engine import start  # needs detectron2, which `import lomar_pretrain` does not

    path = find_config(config, "pretrain")
    cfg = load_config(path, [])
    folders = fspath(data) if isinstance(data, str | Path) else [fspath(item) for item in data]
    settings = overrides | {"data.path": folders, "train.output_dir": fspath(output)}
    for key, value in _flatten(settings):
        set_option(cfg, key, value, path)
    return start(cfg, resume)


def _flatten(settings: dict[str, Any], prefix: str = ""):
    """Sections as dicts to single settings, so that a mistyped one is noticed in either."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, fspath(value) if isinstance(value, Path) else value
