"""The settings of a detector's run, checked before anything is read."""

from omegaconf import DictConfig

from ..config.lazy import require_sections
from ..config.rules import check_settings, number, one_of, pair, whole
from ..config.settings import DetectionSettings, NamedData, OwnData
from .contradictions import refuse_contradictions

# Settings that are arguments of ``L(...)`` calls; `configs/common` has their defaults.
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
    """Checks all settings of a detection config and returns its ``train`` section.

    Raises:
        UserError: the config, read from ``path``, is of another stage, or a setting is wrong.
    """
    require_sections(cfg, path, "coco and configs/custom", *_SECTIONS)
    settings = DetectionSettings.read(cfg, "train")
    if "val" in cfg.data:
        OwnData.read(cfg, "data", skip=("train", "val"))
    else:
        NamedData.read(cfg, "data")
    check_settings(cfg, _CALLS)
    refuse_contradictions(cfg)
    return settings
