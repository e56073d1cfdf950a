"""The pretraining run: what `tools/pretrain.py` does.

Needs detectron2 for its trainer, hooks and writers; models and data do not.
"""

import argparse
import logging
from collections.abc import Sequence
from os import fspath
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

import lomar_det
from lomar_det.checkpoint import load_encoder_weights, save_backbone
from lomar_det.config.lazy import as_list, find_config, load_config, require_sections, set_option
from lomar_det.config.rules import FLAG, RUN_RULES, check_settings, number, one_of, pair, whole
from lomar_det.data.stream import (
    SeededDataset,
    count_accumulation_steps,
    seed_everything,
    stream_loader,
)
from lomar_det.engine import (
    Checkpointer,
    build_trainer,
    check_output_dir,
    check_warmup,
    delete_old_run,
    hooks_by_epochs,
    plan_epochs,
    save_config,
    setup_run,
)
from lomar_det.engine.writers import read_metrics
from lomar_det.errors import UserError
from lomar_det.modeling.build import build_model

from ..data.sources import find_images
from ..data.transforms import PretrainTransform, WithNoise, normalize
from ..data.unreadable import ReplaceUnreadable, collate_images
from ..figures.plots import plot_training
from .hooks import CountBadImages, evaluation_hooks

logger = logging.getLogger(__name__)

RULES = RUN_RULES | {
    "data.crop_scale": pair(number("(0, 1]"), ascending=True),
    "data.flip": FLAG,
    "data.max_bad_fraction": number("[0, 1]"),
    "data.max_megapixels": number("(0, inf)") | one_of(None),
    "data.num_workers": whole(0),
    "train.epochs": number("(0, inf)"),
    "train.warmup_epochs": number("[0, inf)"),
    "train.base_lr": number("(0, inf)"),
    "train.total_batch_size": whole(1),
    "train.betas": pair(number("[0, 1)")),
    "train.weight_decay": number("[0, inf)"),
    "train.checkpoint_epochs": number("(0, inf)"),
    "train.max_to_keep": whole(1) | one_of(None),
    "train.milestone_epochs": number("(0, inf)") | one_of(None),
    "train.picture_epochs": number("[0, inf)"),
    "train.probe.epochs": number("[0, inf)"),
    "train.probe.k": whole(1),
    "train.probe.max_images": whole(1),
    "train.probe.batch_size": whole(1),
}


MAIN_RECIPE = "lomar_vit_b_224_1600ep"


def pretrain(
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    config: str | Path = MAIN_RECIPE,
    resume: bool = False,
    **overrides: Any,
) -> Path:
    """Pretrains on unlabelled images in this process; the same run as the tool's.

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
        data: Folder of images, searched recursively, or several of them.
        output: Folder for checkpoints, logs and images.
        config: A recipe's name (a file in ``configs/pretrain/``) or the path of a config file.
        resume: Continue from the last checkpoint in ``output``.
        overrides: Settings of the config: sections as dicts, or single ones with dots.

    Returns:
        The path of ``backbone_final.pth``, for the next stage.

    Raises:
        UserError: anything the user can mend.
    """
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


def main(args: argparse.Namespace) -> Path:
    """Pretrains from a config file; returns the path of ``backbone_final.pth``.

    Raises:
        UserError: anything the user can mend.
    """
    cfg = load_config(args.config_file, args.opts)
    needed = "model", "data.crop_scale", "train.warmup_epochs", "train.output_dir"
    require_sections(cfg, args.config_file, "pretrain", *needed)
    return start(cfg, args.resume)


def start(cfg: DictConfig, resume: bool = False) -> Path:
    """Sets a run up and runs it, for the tool and for `lomar_pretrain.pretrain` alike."""
    if OmegaConf.is_missing(cfg.data, "path"):
        raise UserError("data.path is not set: give the folder of your images, data.path=FOLDER")
    check_settings(cfg, RULES)
    check_warmup(cfg.train)
    setup_run(cfg)
    return run(cfg, check_output_dir(cfg.train, resume))


def run(cfg: DictConfig, resume: bool = False) -> Path:
    """The run itself: data, model, trainer, then the files for the next stage."""
    settings, device = cfg.train, torch.device(cfg.train.device)
    batch = settings.total_batch_size
    accumulation_steps = count_accumulation_steps(
        batch, settings.max_batch_per_gpu, settings.accumulation_steps
    )
    seed_everything(settings.seed)
    model = build_model(cfg).to(device)  # before the images are looked for: it may be impossible
    paths = find_images(as_list(cfg.data.path), cfg.data.image_root)
    plan = plan_epochs(settings, len(paths))
    optimizer = torch.optim.AdamW(
        param_groups_weight_decay(model, settings.weight_decay),
        lr=plan.lr,
        betas=tuple(settings.betas),
        fused=device.type == "cuda",
    )
    trainer = build_trainer(settings, model, optimizer, accumulation_steps)
    meta = backbone_meta(model, settings.epochs) | {"ema_decay": settings.ema_decay}
    checkpointer = Checkpointer(trainer.model, settings.output_dir, meta=meta, trainer=trainer)
    bad_images = CountBadImages(cfg, len(paths), checkpointer, resume)
    trainer.compute_losses = bad_images.watch(_compute_losses(device))
    watching = evaluation_hooks(cfg, trainer.eval_model, paths, plan.iters_per_epoch)
    trainer.register_hooks(hooks_by_epochs(settings, checkpointer, plan, [bad_images, *watching]))

    path = Path(settings.output_dir, "backbone_final.pth")
    start_iter = checkpointer.resume(plan.max_iter) if resume else 0
    if start_iter == plan.max_iter and path.is_file():
        return path
    if settings.init_checkpoint and not resume:
        # after the probe has measured random weights
        load_encoder_weights(model, settings.init_checkpoint)
        trainer.restart_average()
    transform = PretrainTransform(
        model.img_size, cfg.data.crop_scale, cfg.data.flip, cfg.data.max_megapixels
    )
    make = ReplaceUnreadable(WithNoise(transform, model.noise_shape))
    trainer.data_loader = stream_loader(
        SeededDataset(paths, make, settings.seed),
        batch,
        settings.seed,
        start_iter,
        accumulation_steps,
        cfg.data.num_workers,
        collate_images,
        pin_memory=device.type == "cuda",
        permutation=paths.permutation,
    )
    if not resume:
        delete_old_run(settings)
    save_config(cfg)
    if start_iter < plan.max_iter:  # else it was killed before the files below were written
        trainer.train(start_iter, plan.max_iter)
    if comm.is_main_process():
        save_backbone(path, trainer.eval_model.state_dict(), meta)
        metrics = read_metrics(Path(settings.output_dir, "metrics.json"))
        if metrics:
            plot_training(metrics, Path(settings.output_dir, "loss.png"))
        logger.info("The backbone for the next stage: %s", path)
    return path


def _compute_losses(device: torch.device):
    def compute(model: nn.Module, batch: list[Tensor]) -> dict[str, Tensor]:
        images, noise = (tensor.to(device, non_blocking=True) for tensor in batch)
        return {"loss": model(normalize(images), noise=noise).loss}

    return compute


def backbone_meta(model: nn.Module, epochs: float) -> dict:
    """The plain-data ``meta`` of a run's files: what the model is, and what made it."""
    return model.architecture | {"epochs": epochs, "code_version": lomar_det.__version__}
