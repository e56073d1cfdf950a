"""A detector and the names of its classes from a checkpoint, which is read only once."""

import logging
import re
from pathlib import Path

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..checkpoint import load_weights
from ..checkpoint.rename import Checkpoint, read_checkpoint
from ..config.lazy import require_sections, with_settings
from ..config.rules import check_settings, whole
from ..data.classes import check_class_names
from ..data.coco import read_categories
from ..data.configure import WITHOUT_MASKS
from ..errors import UserError
from ..modeling.build import build_model

logger = logging.getLogger(__name__)


def load_detector(
    cfg: DictConfig, found: Checkpoint, device: torch.device, classes: list[str] | None = None
) -> nn.Module:
    """The model of a config with a checkpoint's weights, ready to evaluate.

    A detector that was trained on boxes alone has no mask head, whatever the config says.

    Args:
        cfg: The config.
        found: What `read_checkpoint` found in the file.
        device: Where the model runs.
        classes: Names of the classes that the detector must have, if they are known.

    Raises:
        UserError: the file does not hold the whole detector, or holds one of other classes.
    """
    check_class_names(found.meta.get("classes"), classes or [], found.path)
    has_heads = any(name.startswith("roi_heads.") for name in found.outside)
    if has_heads and not any("mask_head" in name for name in found.outside):
        cfg = with_settings(cfg, WITHOUT_MASKS)
    model = build_model(cfg).to(device).eval()
    report = load_weights(model, found)
    missing = [name for name in report.initialised if not name.startswith("pixel_")]
    reshaped = [f"{name}, {why}" for name, why in report.dropped.items() if "shape" in why]
    if reshaped:
        raise UserError(
            f"{found.path} is a detector for other classes, or with other heads: {reshaped[0]}; "
            "use the config that it was trained with, and annotations with the same categories"
        )
    if missing:
        raise UserError(
            f"{found.path} is not a checkpoint of the whole detector: {len(missing)} tensors are "
            f"missing, first {missing[0]}"
        )
    return model


def read_detector(cfg: DictConfig, path: str | Path | None = None) -> tuple[DictConfig, Checkpoint]:
    """Reads a detector's checkpoint and takes the number of classes from it, not from annotations.

    Args:
        cfg: A detection config.
        path: The checkpoint; by default the config's ``train.init_checkpoint``.

    Returns:
        The config with the number of classes, and the content of the checkpoint.

    Raises:
        UserError: the config is of another stage, or the checkpoint cannot be read.
    """
    needed = "model.roi_heads", "data.image_size", "dataloader.test", "train.init_checkpoint"
    require_sections(cfg, "the config", "coco and configs/custom", *needed)
    check_settings(cfg, {"data.image_size": whole(1)})
    path = path or cfg.train.init_checkpoint
    if not path:
        raise UserError("give the checkpoint of a trained detector: train.init_checkpoint=FILE")
    found = read_checkpoint(path)
    for name, value in found.outside.items():
        # One more row is for the background. A cascade has several predictors.
        if re.fullmatch(r"roi_heads\.box_predictor\.(\d+\.)?cls_score\.weight", name):
            cfg = with_settings(cfg, {"model.roi_heads.num_classes": value.shape[0] - 1})
    return cfg, found


def find_categories(
    cfg: DictConfig, num_classes: int, names: list[str] | None, file: str | Path | None = None
) -> list[dict]:
    """The classes of a detector as COCO categories, ``id`` and ``name``.

    Names come from the first source that has them: ``file``, the checkpoint, the annotations in the
    config, COCO if there are 80 classes. Otherwise they are "class 1" and so on. Ids come from
    annotations or COCO with the same names. Otherwise they count from 1.

    Args:
        cfg: The config, for ``data.{train,val}.annotations``.
        num_classes: Number of classes of the detector.
        names: The checkpoint's ``meta["classes"]``, if it has them.
        file: One name per line, or annotations in COCO format (.json).

    Raises:
        UserError: ``file`` cannot be read or has another number of classes.
    """
    if file is not None:
        categories = _read_categories(Path(file))
        if len(categories) != num_classes:
            raise UserError(
                f"{file} names {len(categories)} classes, the checkpoint has {num_classes}"
            )
        return categories
    sources = {path: read_categories(path) for path in _annotation_files(cfg)}
    sources["COCO"] = [category for category in COCO_CATEGORIES if category["isthing"]]
    for source, categories in sources.items():
        known = [str(category["name"]) for category in categories]
        if len(known) == num_classes and (not names or known == list(names)):
            return _plain(categories)
        if len(known) != num_classes and source != "COCO":
            logger.warning(
                "%s has %d classes, the checkpoint has %d: the file's names are not used",
                source,
                len(known),
                num_classes,
            )
    if names and len(names) != num_classes:
        logger.warning("The checkpoint has %d classes, but %d names", num_classes, len(names))
        names = None
    names = names or [f"class {i}" for i in range(1, num_classes + 1)]
    return [{"id": i, "name": str(name)} for i, name in enumerate(names, start=1)]


def _annotation_files(cfg: DictConfig) -> list[Path]:
    parts = [OmegaConf.select(cfg, f"data.{split}") or {} for split in ("train", "val")]
    given = [p.annotations for p in parts if p and not OmegaConf.is_missing(p, "annotations")]
    files = [f for entry in given for f in (entry if OmegaConf.is_list(entry) else [entry]) if f]
    return [path for path in map(Path, files) if path.expanduser().is_file()]


def _read_categories(path: Path) -> list[dict]:
    if path.suffix == ".json":
        return read_categories(path)
    try:
        lines = path.expanduser().read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the class names cannot be read from {path}: {error}") from None
    names = [line.strip() for line in lines if line.strip()]
    return [{"id": i, "name": name} for i, name in enumerate(names, start=1)]


def _plain(categories: list[dict]) -> list[dict]:
    return [{"id": c["id"], "name": str(c["name"])} for c in categories]
