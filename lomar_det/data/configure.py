"""From ``data.{train,val}.{annotations,images}`` to a config that is ready to train.

`configure_data` reads the files and returns facts. Only `DataFacts.apply` puts them into a config.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.data import get_detection_dataset_dicts
from omegaconf import DictConfig, OmegaConf

from ..config.lazy import as_list, with_settings
from ..config.settings import OwnData
from ..errors import UserError
from .coco import CocoSummary, merge_summaries, register_coco
from .tiles.tiled_dataset import Tiles, choose_tile_size

logger = logging.getLogger(__name__)

WITHOUT_MASKS = {
    "model.roi_heads.mask_in_features": None,
    "model.roi_heads.mask_pooler": None,
    "model.roi_heads.mask_head": None,
    "dataloader.train.mapper.use_instance_mask": False,
    "dataloader.train.mapper.recompute_boxes": False,
}


@dataclass(frozen=True)
class DataFacts:
    """What COCO-format files decide about the detector that is trained or evaluated on them.

    Attributes:
        names: Split -> its registered name or names.
        classes: Names of the classes, in the model's order.
        use_masks: Train and evaluate a mask head.
        has_rle: At least some masks are run-length encoded.
        max_detections: Detections kept per image.
        num_images: Images to train on, or their tiles.
        tile_size: Side of the tiles; None if images stay whole.
    """

    names: Mapping[str, str | list[str]]
    classes: tuple[str, ...]
    use_masks: bool
    has_rle: bool
    max_detections: int
    num_images: int
    tile_size: int | None = None

    def apply(self, cfg: DictConfig) -> DictConfig:
        """The config with all settings that depend on the data, those of a cascade included."""
        heads, limit = cfg.model.roi_heads, self.max_detections
        values: dict[str, Any] = {
            "model.roi_heads.num_classes": len(self.classes),
            "dataloader.test.dataset.names": self.names["val"],
            "data.max_detections": limit,
            "data.tile_size": self.tile_size,
        }
        if "train" in self.names:
            values["dataloader.train.dataset.names"] = self.names["train"]
        else:
            values["data.train"] = None  # nobody needs it, and it may be incomplete
        if not self.use_masks:
            values |= WITHOUT_MASKS
        elif self.has_rle:
            values["dataloader.train.mapper.instance_mask_format"] = "bitmask"
        stages = range(len(heads.get("box_predictors") or ()))
        predictors = [f"box_predictors.{stage}" for stage in stages] or ["box_predictor"]
        for name in predictors:
            values[f"model.roi_heads.{name}.test_topk_per_image"] = limit
        proposals = cfg.model.proposal_generator.post_nms_topk
        values["model.proposal_generator.post_nms_topk"] = [
            proposals[0],
            max(proposals[1], limit),
        ]
        if cfg.dataloader.get("evaluator") is not None:
            values["dataloader.evaluator.max_dets_per_image"] = limit
        return with_settings(cfg, values)


def configure_data(cfg: DictConfig, training: bool = True) -> DataFacts | None:
    """Registers the user's data in detectron2 and finds the facts that a config needs.

    Args:
        cfg: A config of `configs/custom`.
        training: False for evaluation, which needs the ``val`` part only.

    Returns:
        The facts; None for a config without ``data.val``, which takes COCO by its registered names.

    Raises:
        UserError: a setting is missing or wrong; see also `read_coco_summary`.
    """
    if "val" not in cfg.data:
        return None
    data = OwnData.read(cfg, "data", skip=() if training else ("train",))
    names, val = _register("val", data.val.annotations, data.val.images)
    split_names, train = {"val": names}, val
    if training:
        names, train = _register("train", data.train.annotations, data.train.images)
        split_names["train"] = names
        _check_same_categories(train, val)
    num_images = train.num_annotated_images if data.filter_empty else train.num_images
    tile_size = data.tile_size
    if tile_size == "auto" and not training:
        raise UserError(
            "data.tile_size=auto follows from the objects to train on: for an evaluation, give the "
            "number that the training run has logged, or the run's config.yaml, which has it"
        )
    if tile_size is not None and training:
        dataset = get_detection_dataset_dicts(split_names["train"], data.filter_empty)
        if tile_size == "auto":
            tile_size = choose_tile_size(dataset, data.image_size)
        num_images = _count_tiles(dataset, tile_size, data)
    return DataFacts(
        names=split_names,
        classes=train.class_names,
        use_masks=_use_masks(cfg, train, val),
        has_rle=train.has_rle,
        max_detections=_max_detections(data.max_detections, val.max_instances),
        num_images=num_images,
        tile_size=tile_size,
    )


def _count_tiles(dataset: list[dict], tile_size: int, data: OwnData) -> int:
    """The tiles to train on; says which objects are lost to all of them."""
    tiles = Tiles(tile_size, data.tile_overlap, data.min_visible, data.empty_tiles)
    cut = tiles(dataset)
    logger.info(
        "%d tiles of %d pixels, %d of them shared, to train on", len(cut), tile_size, tiles.overlap
    )
    learned = {id(annotation) for tile in cut for annotation in tile["annotations"]}
    number = sum(len(image["annotations"]) for image in dataset)
    if not learned:
        raise UserError(
            f"data.tile_size={tile_size}: no tile shows data.min_visible={data.min_visible} of an "
            "object; raise data.tile_size, or lower data.min_visible"
        )
    if len(learned) < number:
        logger.warning(
            "%d of %d objects show less than data.min_visible=%g in every tile, and are not "
            "learned; raise data.tile_size or data.tile_overlap",
            number - len(learned),
            number,
            data.min_visible,
        )
    return len(cut)


def _register(
    split: str, annotations: str | list[str], images: str | list[str]
) -> tuple[str | list[str], CocoSummary]:
    """Registers a split; the one for training may have several files."""
    files, folders = as_list(annotations), as_list(images)
    if len(folders) == 1:
        folders *= len(files)
    if len(files) != len(folders):
        raise UserError(
            f"data.{split} has {len(files)} annotation files and {len(folders)} image folders: "
            "give one folder for all, or one for each"
        )
    if split == "val" and len(files) > 1:
        raise UserError("data.val.annotations takes one file: AP is computed on one set")
    names = [f"custom_{split}"] + [f"custom_{split}_{i}" for i in range(2, len(files) + 1)]
    summaries = [
        register_coco(*args, for_evaluation=split == "val")
        for args in zip(names, files, folders, strict=True)
    ]
    for other in summaries[1:]:
        _check_same_categories(summaries[0], other)
    return names if len(names) > 1 else names[0], merge_summaries(summaries)


def _check_same_categories(first: CocoSummary, second: CocoSummary) -> None:
    if (first.category_ids, first.class_names) != (second.category_ids, second.class_names):
        a = set(zip(first.category_ids, first.class_names, strict=True))
        b = set(zip(second.category_ids, second.class_names, strict=True))
        only = sorted(a ^ b)
        raise UserError(
            f"{first.annotations} and {second.annotations} list different categories "
            f"({len(a)} and {len(b)}; in one only: {only[:4]}): ids and names must be the same"
        )


def _use_masks(cfg: DictConfig, train: CocoSummary, val: CocoSummary) -> bool:
    if OmegaConf.select(cfg, "model.roi_heads.mask_head") is None:
        return False  # the user has switched it off
    if not train.has_masks:
        some = f"masks for {train.num_masks} of {train.num_instances} objects"
        what = some if train.num_masks else "boxes only"
        logger.warning("%s has %s: the mask head is off", train.annotations, what)
        return False
    if val.num_instances and not val.has_masks:
        raise UserError(
            f"{train.annotations} has masks, but {val.annotations} does not: give both masks, or "
            "train on boxes only with model.roi_heads.mask_head=null"
        )
    return True


def _max_detections(setting: int | str, max_instances: int) -> int:
    """Crowded images need more than COCO's 100 detections, in the model and in the metrics."""
    limit = max(100, math.ceil(max_instances / 100) * 100) if setting == "auto" else int(setting)
    if limit != 100:
        logger.info("Up to %d objects in an image: keeping %d detections", max_instances, limit)
    return limit
