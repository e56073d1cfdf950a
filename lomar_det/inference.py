"""A trained detector as a function: a picture in, its instances out."""

import copy
import logging
import re
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoint import load_weights, read_state_dict
from .data.classes import check_class_names
from .data.coco import read_categories
from .data.setup import switch_masks_off
from .engine.config import build_model, require_sections
from .engine.launch import pick_device
from .engine.precision import autocast, resolve_precision
from .engine.yacs import load_any_config
from .errors import UserError
from .images import load_image
from .masks import InstanceMasks
from .settings import check_settings, whole
from .tiling import Box, group_detections, tile_boxes, tile_spans

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


class Predictor:
    """A detector that takes pictures of any size and format.

    Pictures are opened as in training and resized as in evaluation; results are in the picture's
    own pixels::

        predictor = Predictor("configs/custom/mask_rcnn_lomar_vit_b.py", "model_final.pth")
        instances = predictor("picture.jpg")
        names = [predictor.categories[i]["name"] for i in instances.pred_classes]

    Args:
        config: A LazyConfig, as a file or loaded; the number of classes and whether there are
            masks follow from the checkpoint.
        checkpoint: The whole detector; by default the config's ``train.init_checkpoint``.
        confidence_threshold: Detections must score above it.
        max_detections: Most detections of a picture, the best ones; by default the config's
            number, of a tile where there are tiles.
        tile_size: Look at larger pictures in tiles of this many pixels; 0 looks at them whole.
        tile_overlap: Pixels that neighbouring tiles share; by default a quarter of their size.
        classes: See `find_categories`.

    Attributes:
        model: The detectron2 model.
        categories: For every class, COCO's ``id`` and ``name``.
        image_size: The longest side that the model sees, in pixels.

    Raises:
        UserError: a setting is wrong, or the checkpoint is not a detector that fits the config.
    """

    def __init__(
        self,
        config: DictConfig | str | Path,
        checkpoint: str | Path | None = None,
        confidence_threshold: float = 0.5,
        max_detections: int | None = None,
        tile_size: int = 0,
        tile_overlap: int | None = None,
        classes: str | Path | None = None,
    ):
        if not 0 <= confidence_threshold < 1:
            raise UserError(f"confidence threshold {confidence_threshold} is not between 0 and 1")
        if max_detections is not None and max_detections < 1:
            raise UserError(f"the most detections of a picture, {max_detections}, must be above 0")
        is_config = isinstance(config, DictConfig)
        cfg = copy.deepcopy(config) if is_config else load_any_config(config, [])
        if checkpoint is not None:
            cfg.train.init_checkpoint = str(checkpoint)
        self.max_detections = max_detections
        self.tile_size = tile_size
        self.tile_overlap = tile_size // 4 if tile_overlap is None else tile_overlap
        tile_spans(self.tile_size + 1, self.tile_size, self.tile_overlap)  # refuses wrong sizes
        self.device = pick_device(cfg.train.device)
        self.dtype = resolve_precision(cfg.train.precision, self.device)
        meta = follow_checkpoint(cfg)
        self.model = load_detector(cfg, self.device)
        self.categories = find_categories(
            cfg, cfg.model.roi_heads.num_classes, meta.get("classes"), classes
        )
        self.image_size = cfg.data.image_size
        augmentations = instantiate(cfg.dataloader.test.mapper.augmentations)
        self._augment = T.AugmentationList(list(augmentations))
        limit = max_detections or cfg.data.get("max_detections")
        for module in self.model.modules():
            if isinstance(module, FastRCNNOutputLayers):
                module.test_score_thresh = confidence_threshold
                if isinstance(limit, int):  # a config may say "auto"
                    module.test_topk_per_image = limit
        if isinstance(limit, int):
            topk = self.model.proposal_generator.post_nms_topk  # by whether it is training
            topk[False] = max(topk[False], limit)

    def __call__(self, image: str | Path | Image.Image | np.ndarray) -> Instances:
        """Detects the instances of a picture.

        Args:
            image: A file, a PIL image, or RGB pixels (height, width, 3) from 0 to 255.

        Returns:
            ``pred_boxes``, ``scores``, ``pred_classes`` and, if the detector has masks,
            ``pred_masks`` (`InstanceMasks`), best score first, on the CPU.

        Raises:
            UserError: the file is not a picture.
        """
        image = _open(image)
        tiles = list(tile_boxes(image.size, self.tile_size, self.tile_overlap))
        if len(tiles) == 1:
            instances = self._detect(image, tiles[0])
        else:
            shown = tqdm(tiles, "tiles", leave=False, disable=len(tiles) < 10)
            parts = [self._detect(image, tile) for tile in shown]
            instances = _merge(parts, tiles, image.size)
        return instances[: self.max_detections]

    @torch.inference_mode()
    def _detect(self, image: Image.Image, tile: Box) -> Instances:
        """The instances of one tile, in pixels of the picture."""
        pixels = np.asarray(image if tile == (0, 0, *image.size) else image.crop(tile))
        height, width = pixels.shape[:2]
        augmented = T.AugInput(pixels)
        try:
            self._augment(augmented)
        except ValueError as error:  # Pillow's, of a picture so narrow that nothing is left of it
            raise UserError(
                f"a picture of {width} x {height} pixels cannot be resized to {self.image_size} "
                f"({error}); cut it into shorter pieces, or use tiles"
            ) from None
        tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        with autocast(self.device, self.dtype):
            raw = self.model.inference([{"image": tensor}], do_postprocess=False)[0].to("cpu")
        boxes = Boxes(raw.pred_boxes.tensor.float())
        boxes.scale(width / raw.image_size[1], height / raw.image_size[0])
        boxes.clip((height, width))
        kept = boxes.nonempty()
        raw, boxes = raw[kept], boxes[kept].tensor
        size = image.size[::-1]
        instances = Instances(size)
        instances.pred_boxes = Boxes(boxes + boxes.new_tensor([*tile[:2], *tile[:2]]))
        instances.scores = raw.scores.float()
        instances.pred_classes = raw.pred_classes
        if self.model.roi_heads.mask_on:
            masks = raw.pred_masks[:, 0].float()
            instances.pred_masks = InstanceMasks.paste(masks, boxes, size, tile[:2])
        return instances


def _open(image: str | Path | Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"pixels must be RGB (height, width, 3) of uint8, not {image.shape} of {image.dtype}"
        )
    return Image.fromarray(image)


def _merge(parts: list[Instances], tiles: list[Box], size: tuple[int, int]) -> Instances:
    """The instances of all tiles in one, every object once; see `group_detections`."""
    tile_ids = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])
    every = Instances.cat(parts)
    boxes = every.pred_boxes.tensor
    groups = group_detections(
        boxes, every.scores, every.pred_classes, tile_ids, torch.tensor(tiles), size
    )
    best = torch.tensor([max(g, key=lambda i: every.scores[i]) for g in groups], dtype=torch.long)
    merged = every[best]
    for i, group in enumerate(groups):
        if len(group) > 1:
            merged.pred_boxes.tensor[i] = _hull(boxes[group])
    if merged.has("pred_masks"):
        masks = [every.pred_masks[g].union() if len(g) > 1 else every.pred_masks[g] for g in groups]
        merged.pred_masks = InstanceMasks.cat([every.pred_masks[:0], *masks])
    return merged


def _hull(boxes: Tensor) -> Tensor:
    """The smallest box around all of (N, 4)."""
    return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
