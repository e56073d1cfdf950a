"""Refuses settings that are each valid but contradict each other."""

from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from ..layers import grid_size


def refuse_contradictions(cfg: DictConfig) -> None:
    """Checks a detection config, overrides applied; settings that it does not have are skipped.

    Raises:
        UserError: settings contradict each other; the message names them and the remedy.
    """
    _check_padding(cfg)
    _check_strides(cfg)
    net = OmegaConf.select(cfg, "model.backbone.net")
    if net is not None and net.get("rel_pos") == "decomposed" and "img_size" in net:
        try:
            grid_size(net.img_size, net.patch_size)
        except ValueError as error:
            raise UserError(
                f"model.backbone.net.img_size sizes the rel_pos tables: {error}"
            ) from None


def _check_padding(cfg: DictConfig) -> None:
    """detectron2 would crop a larger image, in silence if the image is alone in its batch."""
    square = OmegaConf.select(cfg, "model.backbone.square_pad")
    image_size = OmegaConf.select(cfg, "data.image_size")
    if square and image_size and square < image_size:
        raise UserError(
            f"model.backbone.square_pad={square} is smaller than data.image_size={image_size}: "
            "make it as large, or 0 to pad a batch to its largest image"
        )


def _check_strides(cfg: DictConfig) -> None:
    """A config gives its poolers the pyramid's scales as numbers, which fit patches of 16."""
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
