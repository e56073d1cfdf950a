"""The yacs route: turns a yaml config into the LazyConfig that every run takes.

So both kinds of config go through one engine. `SETTINGS` maps settings to yacs keys.
"""

import contextlib
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.config import LazyCall as L
from detectron2.modeling import build_model
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..config.lazy import CONFIGS, frozen, load_config
from ..config.settings import DetectionData, DetectionSettings
from ..data.configure import WITHOUT_MASKS
from ..engine.setup import save_config
from ..errors import UserError
from ..modeling import add_lomar_config

# Setting in an ``L(...)`` call -> yacs key. Those of the model also go back (`current_node`).
_CALLS = {
    "model.backbone.net.depth": "MODEL.LOMAR.DEPTH",
    "model.backbone.square_pad": "MODEL.LOMAR.SQUARE_PAD",
    "model.roi_heads.num_classes": "MODEL.ROI_HEADS.NUM_CLASSES",
    "model.roi_heads.mask_head": "MODEL.MASK_ON",
    "model.roi_heads.box_predictor.test_topk_per_image": "TEST.DETECTIONS_PER_IMAGE",
    "model.proposal_generator.post_nms_topk.0": "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    "model.proposal_generator.post_nms_topk.1": "MODEL.RPN.POST_NMS_TOPK_TEST",
    "data.train.annotations": "DATASETS.TRAIN_JSON_FILE",
    "data.train.images": "DATASETS.TRAIN_IMAGE_ROOT",
    "data.val.annotations": "DATASETS.TEST_JSON_FILE",
    "data.val.images": "DATASETS.TEST_IMAGE_ROOT",
    "dataloader.train.dataset.names": "DATASETS.TRAIN",
    "dataloader.train.mapper.instance_mask_format": "INPUT.MASK_FORMAT",
    "dataloader.train.mapper.image_format": "INPUT.FORMAT",
    "dataloader.train.total_batch_size": "SOLVER.IMS_PER_BATCH",
    "dataloader.train.num_workers": "DATALOADER.NUM_WORKERS",
    "dataloader.test.num_workers": "DATALOADER.NUM_WORKERS",
    "optimizer.lr": "SOLVER.BASE_LR",
    "optimizer.weight_decay": "SOLVER.WEIGHT_DECAY",
    "optimizer.params.lr_decay_rate": "SOLVER.LR_DECAY_RATE",
    "optimizer.params.weight_decay_norm": "SOLVER.WEIGHT_DECAY_NORM",
    "lr_multiplier.warmup_iters": "SOLVER.WARMUP_ITERS",
    "lr_multiplier.warmup_factor": "SOLVER.WARMUP_FACTOR",
    "lr_multiplier.gamma": "SOLVER.GAMMA",
}
# Setting in a section -> the yacs key that its field names.
_SECTIONS = {
    name: field.metadata["yacs"]
    for section, title in ((DetectionSettings, "train"), (DetectionData, "data"))
    for name, field in section.walk(title)
    if field.metadata["yacs"]
}
SETTINGS = _CALLS | _SECTIONS
# Further settings that errors may name.
_OTHER_NAMES = {
    "train.wandb": "WANDB.PROJECT",
    "train.clip_grad_norm": "SOLVER.CLIP_GRADIENTS",
    "data.*.annotations": "DATASETS.*_JSON_FILE",
    "data.*.images": "DATASETS.*_IMAGE_ROOT",
    "model.backbone.net": "MODEL.LOMAR",
}

# Settings of detectron2 that this engine does not read; a config that changes one is refused.
WITHOUT_EFFECT = {
    "training uses AdamW": (
        "SOLVER.MOMENTUM",
        "SOLVER.NESTEROV",
        "SOLVER.BIAS_LR_FACTOR",
        "SOLVER.WEIGHT_DECAY_BIAS",
    ),
    "the schedule is WarmupMultiStepLR": (
        "SOLVER.LR_SCHEDULER_NAME",
        "SOLVER.WARMUP_METHOD",
        "SOLVER.RESCALE_INTERVAL",
    ),
    "images are sized by INPUT.IMAGE_SIZE, MIN_SCALE and MAX_SCALE, and flipped": (
        "INPUT.MIN_SIZE_TRAIN",
        "INPUT.MAX_SIZE_TRAIN",
        "INPUT.MIN_SIZE_TEST",
        "INPUT.MAX_SIZE_TEST",
        "INPUT.CROP.ENABLED",
        "INPUT.RANDOM_FLIP",
    ),
    "the sample stream is lomar_det.data.build_train_loader's": (
        "DATALOADER.SAMPLER_TRAIN",
        "DATALOADER.ASPECT_RATIO_GROUPING",
        "MODEL.LOAD_PROPOSALS",
    ),
    "this engine does not do it": (
        "SOLVER.REFERENCE_WORLD_SIZE",
        "TEST.AUG.ENABLED",
        "TEST.PRECISE_BN.ENABLED",
        "TEST.EXPECTED_RESULTS",
        "VIS_PERIOD",
        "CUDNN_BENCHMARK",
    ),
}


def is_yacs(path: str | Path) -> bool:
    """Whether a config file is a yacs one, by its suffix."""
    return Path(path).suffix in (".yaml", ".yml")


def load_any_config(path: str | Path, overrides: list[str]) -> DictConfig:
    """Reads a config of either kind: .py with ``key=value``, yaml with ``KEY VALUE``.

    Raises:
        UserError: see `load_config`; in a yaml, a setting that does not exist or has no effect.
    """
    if is_yacs(path):
        node = _default_node()
        defaults = node.clone()
        _merge_file(node, path)
        _merge_overrides(node, path, overrides)
        _check_effects(node, defaults)
        return _to_lazy(node)
    return load_config(path, overrides)


def build_from_yacs(settings: str, **sections) -> nn.Module:
    """Builds the model of a run configured in yacs, by `detectron2.modeling.build_model`.

    Args:
        settings: The CfgNode as yaml.
        **sections: The settings under ``model`` that `SETTINGS` lists.
    """
    node = current_node(settings, sections)
    node.MODEL.DEVICE = str(torch.get_default_device())  # the engine moves the model
    return build_model(node)


def current_node(settings: str, sections: dict) -> CfgNode:
    """The CfgNode of a run, with the model's settings that follow from the data.

    Args:
        settings, sections: See `build_from_yacs`.
    """
    node = _default_node()
    node.merge_from_other_cfg(CfgNode.load_cfg(settings))
    model = OmegaConf.create({"model": sections}, flags={"allow_objects": True})
    for name, key in SETTINGS.items():
        if name.startswith("model."):
            value = OmegaConf.select(model, name)
            _set(node, key, value is not None if key == "MODEL.MASK_ON" else value)
    return node


def save_run_config(cfg: DictConfig, output_dir: str | Path, name: str = "config.yaml") -> None:
    """Like `save_config`, but saves a run configured in yacs as a yaml for ``--config-file``."""
    if cfg.model._target_ is build_from_yacs:
        sections = {key: cfg.model[key] for key in cfg.model if key not in ("_target_", "settings")}
        text = current_node(cfg.model.settings, sections).dump()
        if comm.is_main_process():
            Path(output_dir, name).write_text(text)
    else:
        save_config(cfg, output_dir, name)


@contextlib.contextmanager
def naming_yacs_keys(path: str | Path) -> Iterator[None]:
    """Errors of a run configured in yacs also name the yacs keys of the settings."""
    try:
        yield
    except UserError as error:
        if not is_yacs(path):
            raise
        names = SETTINGS | _OTHER_NAMES
        there = [name for name in names if re.search(rf"{re.escape(name)}(?![\w.])", str(error))]
        keys = "; ".join(f"{name} is {names[name]}" for name in there)
        raise UserError(f"{error} (in {path}: {keys})" if keys else str(error)) from error


def _default_node() -> CfgNode:
    node = get_cfg()
    add_lomar_config(node)
    node.MODEL.DEVICE = "auto"
    return node


def _merge_file(node: CfgNode, path: str | Path) -> None:
    if not Path(path).is_file():
        raise UserError(f"the config file {path} does not exist; see the folder configs/")
    try:
        node.merge_from_file(str(path), allow_unsafe=False)
    except (KeyError, ValueError, TypeError, AssertionError, OSError, yaml.YAMLError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise UserError(f"{path} is not a yacs config for this tool: {reason}") from None


def _merge_overrides(node: CfgNode, path: str | Path, overrides: list[str]) -> None:
    if len(overrides) % 2:
        raise UserError(
            f"the overrides of a yaml config are pairs, KEY VALUE; {overrides[-1]!r} stands alone"
        )
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        *parents, leaf = key.split(".")
        section = node
        for parent in parents:
            section = section.get(parent) if isinstance(section, CfgNode) else None
        if not isinstance(section, CfgNode) or leaf not in section:
            known = ", ".join(sorted(section)) if isinstance(section, CfgNode) else "nothing"
            where = ".".join(parents) or "it"
            raise UserError(f"{path} has no setting {key!r}; {where} has {known}")
        try:
            node.merge_from_list([key, value])
        except (ValueError, AssertionError) as error:
            raise UserError(f"the override {key} {value} cannot be applied: {error}") from None


def _check_effects(node: CfgNode, defaults: CfgNode) -> None:
    for why, keys in WITHOUT_EFFECT.items():
        for key in keys:
            if _get(node, key) != _get(defaults, key):
                raise UserError(f"{key} has no effect here: {why}. Set it to {_get(defaults, key)}")
    if node.WANDB.NAME and not node.WANDB.PROJECT.strip():
        raise UserError("WANDB.NAME has no effect here: WANDB.PROJECT is empty. Name a project")
    clip = node.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and (clip.CLIP_TYPE, clip.NORM_TYPE) != ("full_model", 2.0):
        raise UserError(
            "gradients are clipped by their norm over the full model: set "
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model and NORM_TYPE 2.0"
        )
    if not node.DATASETS.TEST:
        return
    if len(node.DATASETS.TEST) > 1:
        raise UserError(f"DATASETS.TEST={node.DATASETS.TEST}: evaluate one data set at a time")
    for key in ("TRAIN_JSON_FILE", "TRAIN_IMAGE_ROOT", "TEST_JSON_FILE", "TEST_IMAGE_ROOT"):
        if node.DATASETS[key]:
            raise UserError(f"DATASETS.{key} is for data of your own: set TRAIN and TEST to ()")


def _to_lazy(node: CfgNode) -> DictConfig:
    """The common LazyConfigs of a detection run, filled from a CfgNode."""
    data, run = (
        LazyConfig.load(str(CONFIGS / "common" / name))
        for name in ("detection_data.py", "detection_train.py")
    )
    cfg = OmegaConf.create({**data, **run}, flags={"allow_objects": True})
    cfg.model = L(build_from_yacs)(settings=node.dump())
    cfg.model.proposal_generator = {"post_nms_topk": [0, 0]}
    for name, key in SETTINGS.items():
        OmegaConf.update(cfg, name, _get(node, key), force_add=True)
    if not node.DATASETS.TEST:
        del cfg.data.num_images
    else:
        del cfg.data.train, cfg.data.val
        cfg.dataloader.test.dataset.names = node.DATASETS.TEST[0]
    if node.TEST.DETECTIONS_PER_IMAGE != 100:  # 100, the default, is "auto"
        if not node.DATASETS.TEST:
            cfg.data.max_detections = node.TEST.DETECTIONS_PER_IMAGE
        cfg.dataloader.evaluator.max_dets_per_image = node.TEST.DETECTIONS_PER_IMAGE
    if not node.MODEL.MASK_ON:
        for name, value in WITHOUT_MASKS.items():
            OmegaConf.update(cfg, name, value, force_add=True)
    if node.SOLVER.ACCUMULATION_STEPS is None:
        cfg.train.accumulation_steps = "auto"
    if not node.SOLVER.AMP.ENABLED:
        cfg.train.precision = "fp32"
    if node.SOLVER.CLIP_GRADIENTS.ENABLED:
        cfg.train.clip_grad_norm = node.SOLVER.CLIP_GRADIENTS.CLIP_VALUE
    if node.WANDB.PROJECT.strip():
        cfg.train.wandb = {key.lower(): value for key, value in node.WANDB.items() if value}
    steps = [step for step in node.SOLVER.STEPS if step < node.SOLVER.MAX_ITER]
    cfg.lr_multiplier.milestones = [step / node.SOLVER.MAX_ITER for step in steps]
    cfg.train.lr_batch_size = None
    return frozen(cfg)


def _get(node: CfgNode, key: str):
    return reduce(getattr, key.split("."), node)


def _set(node: CfgNode, key: str, value) -> None:
    section, _, leaf = key.rpartition(".")
    _get(node, section)[leaf] = value
