"""The settings of a detector's run, checked before anything is read: each, and together."""

from omegaconf import DictConfig, OmegaConf

from ..config.lazy import require_sections
from ..config.rules import check_settings, number, one_of, pair, whole
from ..config.settings import DetectionData, DetectionSettings, OwnData
from ..errors import UserError
from ..layers import grid_size

# Arguments of the calls in a config; their defaults stand in `configs/common`.
_CALLS = {
    "optimizer.lr": number("(0, inf)"),
    "optimizer.weight_decay": number("[0, inf)"),
    "optimizer.params.base_lr": number("(0, inf)"),
    "optimizer.params.weight_decay": number("[0, inf)"),
    "optimizer.params.lr_decay_rate": number("(0, 1]"),
    "optimizer.betas": pair(number("[0, 1)")),
    "lr_multiplier.warmup_iters": whole(0),
    "dataloader.train.mapper.image_format": one_of("RGB"),
    "dataloader.train.mapper.instance_mask_format": one_of("polygon", "bitmask"),
    "dataloader.train.total_batch_size": whole(1),
    "dataloader.train.num_workers": whole(0),
    "dataloader.test.num_workers": whole(0),
}
_SECTIONS = "model", "data", "dataloader.train", "optimizer", "lr_multiplier", "train.max_iter"


def check_detection_config(cfg: DictConfig, path: str) -> DetectionSettings:
    """The ``train`` section of a detection config, in which everything obeys its rules.

    Raises:
        UserError: the config, read from ``path``, is of another stage, or a setting is wrong.
    """
    require_sections(cfg, path, "coco and configs/custom", *_SECTIONS)
    settings = DetectionSettings.read(cfg, "train")
    if "val" in cfg.data:
        OwnData.read(cfg, "data", skip=("train", "val"))
    else:
        DetectionData.read(cfg, "data")
    check_settings(cfg, _CALLS)
    refuse_contradictions(cfg)
    return settings


def refuse_contradictions(cfg: DictConfig) -> None:
    """Looks at a detection config, overrides applied; what it does not have is not looked at.

    Raises:
        UserError: names both settings and the remedy.
    """
    _check_padding(cfg)
    _check_strides(cfg)
    net = OmegaConf.select(cfg, "model.backbone.net")
    if net is not None and net.get("rel_pos") == "decomposed" and "img_size" in net:
        try:
            grid_size(net.img_size, net.patch_size)
        except ValueError as error:
            raise UserError(
                f"model.backbone.net.img_size lays out rel_pos tables: {error}"
            ) from None


def _check_padding(cfg: DictConfig) -> None:
    """detectron2 would cut a larger image off, in silence if it is alone in its batch."""
    square = OmegaConf.select(cfg, "model.backbone.square_pad")
    image_size = OmegaConf.select(cfg, "data.image_size")
    if square and image_size and square < image_size:
        raise UserError(
            f"model.backbone.square_pad={square} is smaller than data.image_size={image_size}: "
            "make it as large, or 0 to pad a batch to its largest image"
        )


def _check_strides(cfg: DictConfig) -> None:
    """The poolers of a config hold the pyramid's strides as numbers, for a patch size of 16."""
    patch_size = OmegaConf.select(cfg, "model.backbone.net.patch_size")
    factors = OmegaConf.select(cfg, "model.backbone.scale_factors")
    if not patch_size or not factors:
        return
    wanted = [factor / patch_size for factor in factors]
    for pooler in ("box_pooler", "mask_pooler"):
        scales = OmegaConf.select(cfg, f"model.roi_heads.{pooler}.scales")
        if scales and list(scales) != wanted:
            raise UserError(
                f"model.backbone.net.patch_size={patch_size} makes a pyramid of scales {wanted}, "
                f"but model.roi_heads.{pooler}.scales is {list(scales)}: use patch size 16, or set "
                "the poolers' scales, the anchors' strides and all in_features to that pyramid"
            )
