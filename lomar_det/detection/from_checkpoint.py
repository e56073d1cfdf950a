"""A detector, and the names of its classes, from a checkpoint."""

import logging
import re
from pathlib import Path

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..checkpoint import load_weights, read_state_dict
from ..config.lazy import require_sections
from ..config.rules import check_settings, whole
from ..data.classes import check_class_names
from ..data.coco import read_categories
from ..data.configure import switch_masks_off
from ..errors import UserError
from ..modeling.build import build_model

logger = logging.getLogger(__name__)


def load_detector(
    cfg: DictConfig, device: torch.device, classes: list[str] | None = None
) -> nn.Module:
    """The model of a config with the weights of ``train.init_checkpoint``, ready to evaluate.

    Args:
        cfg: The config.
        device: Where the model shall be.
        classes: Names of the classes that it must detect; None or none if nobody knows them.

    Raises:
        UserError: the file does not hold the whole detector, or one of other classes.
    """
    path = cfg.train.init_checkpoint
    if not path:
        raise UserError("a trained detector is needed: train.init_checkpoint=FILE")
    names, meta = read_state_dict(path)
    check_class_names(meta.get("classes"), classes or [], path)
    if not any("mask_head" in name for name in names) and any("roi_heads" in n for n in names):
        switch_masks_off(cfg)  # it was trained on boxes only
    model = build_model(cfg).to(device).eval()
    report = load_weights(model, path)
    missing = [name for name in report.initialised if not name.startswith("pixel_")]
    reshaped = [f"{name}, {why}" for name, why in report.dropped.items() if "shape" in why]
    if reshaped:
        raise UserError(
            f"{path} is a detector for other classes, or with other heads: {reshaped[0]}; use the "
            "config that it was trained with, and annotations with the same categories"
        )
    if missing:
        raise UserError(
            f"{path} is not a checkpoint of the whole detector: {len(missing)} tensors are "
            f"missing, first {missing[0]}"
        )
    return model


def follow_checkpoint(cfg: DictConfig) -> dict:
    """Sets the number of classes to the checkpoint's, for those who have no annotations.

    Returns:
        The checkpoint's ``meta``.
    """
    needed = "model.roi_heads", "data.image_size", "dataloader.test", "train.init_checkpoint"
    require_sections(cfg, "the config", "coco and configs/custom", *needed)
    check_settings(cfg, {"data.image_size": whole(1)})
    if not cfg.train.init_checkpoint:
        return {}
    tensors, meta = read_state_dict(cfg.train.init_checkpoint)
    for name, value in tensors.items():
        # with one more for the background; a cascade has several predictors
        if re.fullmatch(r"roi_heads\.box_predictor\.(\d+\.)?cls_score\.weight", name):
            cfg.model.roi_heads.num_classes = value.shape[0] - 1
    return meta


def find_categories(
    cfg: DictConfig, num_classes: int, names: list[str] | None, file: str | Path | None = None
) -> list[dict]:
    """The classes of a detector as COCO categories, ``id`` and ``name``.

    Names come from ``file``, else from the checkpoint, else from the annotations that the config
    names, else they are COCO's if there are 80, else "class 1" and so on. Ids are those of the
    source with these names, else they count from 1.

    Args:
        cfg: The config, for ``data.{train,val}.annotations``.
        num_classes: How many there must be.
        names: The checkpoint's ``meta["classes"]``, if it has them.
        file: One name a line, or annotations in COCO format (.json).

    Raises:
        UserError: the file cannot be read or has another number of classes.
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
                "%s has %d classes, the checkpoint %d: it names none",
                source,
                len(known),
                num_classes,
            )
    if names and len(names) != num_classes:
        logger.warning("The checkpoint has %d classes and %d names", num_classes, len(names))
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
