"""From ``data.{train,val}.{annotations,images}`` to a config that is ready to train."""

import logging
import math

from omegaconf import DictConfig, OmegaConf

from ..config.lazy import as_list
from ..errors import UserError
from .coco import CocoSummary, merge_summaries, register_coco

logger = logging.getLogger(__name__)


def configure_data(cfg: DictConfig, training: bool = True) -> None:
    """Registers the user's data and makes everything that depends on it follow, in place.

    Sets the names in ``dataloader``, the number of classes of all heads, the mask head (off, with a
    log line, where the annotations have boxes only), the mask format, the detections kept per
    image, and ``train.max_iter`` from ``train.epochs``. A config without ``data.val`` (COCO
    under its registered names) gets only the latter, from ``data.num_images``.

    Args:
        cfg: A LazyConfig of `configs/custom` or `configs/coco`, overrides applied.
        training: False for evaluation, which needs the ``val`` part only.

    Raises:
        UserError: a setting is missing, or see `read_coco_summary`.
    """
    if "val" not in cfg.data:
        if training:
            _configure_iterations(cfg, cfg.data.get("num_images"))
        return
    val = _register(cfg, "val")
    train = val
    if training:
        train = _register(cfg, "train")
        _check_same_categories(train, val)
    heads = cfg.model.roi_heads
    heads.num_classes = len(train.class_names)
    _configure_masks(cfg, train, val)
    _configure_max_detections(cfg, val.max_instances)
    if training:
        filtered = cfg.dataloader.train.dataset.filter_empty
        _configure_iterations(cfg, train.num_annotated_images if filtered else train.num_images)


def _register(cfg: DictConfig, split: str) -> CocoSummary:
    """Registers a split; that of training may be several files."""
    part = cfg.data[split]
    for key in ("annotations", "images"):
        if OmegaConf.is_missing(part, key) or not part[key]:
            what = "COCO-format JSON file" if key == "annotations" else "folder of its images"
            raise UserError(f"data.{split}.{key} is not set: give the {what}")
    files, folders = as_list(part.annotations), as_list(part.images)
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
    loader = cfg.dataloader.train if split == "train" else cfg.dataloader.test
    loader.dataset.names = names if len(names) > 1 else names[0]
    return merge_summaries(summaries)


def _check_same_categories(first: CocoSummary, second: CocoSummary) -> None:
    if (first.category_ids, first.class_names) != (second.category_ids, second.class_names):
        a = set(zip(first.category_ids, first.class_names, strict=True))
        b = set(zip(second.category_ids, second.class_names, strict=True))
        only = sorted(a ^ b)
        raise UserError(
            f"{first.annotations} and {second.annotations} list different categories "
            f"({len(a)} and {len(b)}; in one only: {only[:4]}): ids and names must be the same"
        )


def _configure_masks(cfg: DictConfig, train: CocoSummary, val: CocoSummary) -> None:
    if cfg.model.roi_heads.get("mask_head") is None:
        switch_masks_off(cfg)  # as the user wants: also what belongs to the head
        return
    if not train.has_masks:
        some = f"masks for {train.num_masks} of {train.num_instances} objects"
        what = some if train.num_masks else "boxes only"
        logger.warning("%s has %s: the mask head is off", train.annotations, what)
        switch_masks_off(cfg)
        return
    if val.num_instances and not val.has_masks:
        raise UserError(
            f"{train.annotations} has masks but {val.annotations} has not: give both masks, or "
            "train on boxes only with model.roi_heads.mask_head=null"
        )
    if train.has_rle:
        cfg.dataloader.train.mapper.instance_mask_format = "bitmask"


def switch_masks_off(cfg: DictConfig) -> None:
    """Takes the mask head out of the model, and masks out of the loader."""
    heads, mapper = cfg.model.roi_heads, cfg.dataloader.train.mapper
    heads.mask_in_features = heads.mask_pooler = heads.mask_head = None
    mapper.use_instance_mask = mapper.recompute_boxes = False


def _configure_max_detections(cfg: DictConfig, max_instances: int) -> None:
    """Crowded images need more than COCO's 100 detections, in the model and in the metrics."""
    if cfg.data.get("max_detections", "auto") == "auto":
        cfg.data.max_detections = max(100, math.ceil(max_instances / 100) * 100)
    limit = cfg.data.max_detections
    if not isinstance(limit, int) or limit < 1:
        raise UserError(f"data.max_detections={limit} must be auto or a whole number, at least 1")
    if limit != 100:
        logger.info("Up to %d objects in an image: keeping %d detections", max_instances, limit)
    heads = cfg.model.roi_heads
    for predictor in heads.get("box_predictors") or [heads.box_predictor]:  # cascade or not
        predictor.test_topk_per_image = limit
    proposals = cfg.model.proposal_generator.post_nms_topk
    cfg.model.proposal_generator.post_nms_topk = (proposals[0], max(proposals[1], limit))
    if cfg.dataloader.get("evaluator") is not None:
        cfg.dataloader.evaluator.max_dets_per_image = limit


def _configure_iterations(cfg: DictConfig, num_images: int | None) -> None:
    epochs, batch = cfg.train.epochs, cfg.dataloader.train.total_batch_size
    if cfg.train.max_iter is not None:
        if epochs is not None:
            logger.warning("train.max_iter is set: train.epochs=%g does not count", epochs)
    elif epochs is None or num_images is None:
        raise UserError("give the length of the run: train.epochs or train.max_iter")
    else:
        cfg.train.max_iter = math.ceil(epochs * num_images / batch)
        logger.info(
            "%g epochs x %d images / batch %d = %d iterations",
            epochs,
            num_images,
            batch,
            cfg.train.max_iter,
        )
    usual, lr = cfg.train.lr_batch_size, cfg.optimizer.lr
    if usual not in (None, batch):
        logger.warning(
            "the learning rate %g is meant for batch %d, this run has %d; scaled linearly it would "
            "be %g (optimizer.lr)",
            lr,
            usual,
            batch,
            lr * batch / usual,
        )
