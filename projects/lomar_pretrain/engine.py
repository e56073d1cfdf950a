"""The pretraining run: what `tools/pretrain.py` does.

Needs detectron2 for its trainer, hooks and writers; models and data do not.
"""

import argparse
import json
import logging
import math
from pathlib import Path

from lomar_det.compat import require_detectron2

require_detectron2()

import torch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

import lomar_det
from lomar_det.checkpoint import save_backbone
from lomar_det.engine import (
    Checkpointer,
    Trainer,
    resolve_precision,
    save_config,
    setup_run,
    standard_hooks,
    warmup_cosine_schedule,
    wrap_ddp,
)
from lomar_det.engine.config import build_model, load_config
from lomar_det.errors import UserError
from lomar_det.stream import SeededDataset, seed_everything, stream_loader

from .bad_images import BadImage, ReplaceUnreadable, collate_images
from .data import PretrainTransform, pick_readable
from .hooks import CountBadImages
from .lomar import LoMaR
from .pictures import plot_loss, reconstruction_sheet
from .sources import ImageList, find_images

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> Path:
    """Pretrains from a config file; returns the path of ``backbone_final.pth``.

    Raises:
        UserError: anything the user can mend.
    """
    cfg = load_config(args.config_file, args.opts)
    if OmegaConf.is_missing(cfg.data, "path"):
        raise UserError("data.path is not set: give the folder of your images, data.path=FOLDER")
    setup_run(cfg)
    return run(cfg, args.resume)


def run(cfg: DictConfig, resume: bool = False) -> Path:
    """The run itself: data, model, trainer, then the files for the next stage."""
    settings, device = cfg.train, torch.device(cfg.train.device)
    if not 0 <= settings.warmup_epochs < settings.epochs:
        raise UserError(
            f"train.warmup_epochs={settings.warmup_epochs} does not fit into "
            f"train.epochs={settings.epochs}: it must be at least 0 and less than that"
        )
    paths = find_images(_as_list(cfg.data.path), cfg.data.image_root)
    batch = settings.total_batch_size
    iters_per_epoch = max(1, len(paths) // batch)
    max_iter = math.ceil(settings.epochs * iters_per_epoch)
    lr = settings.base_lr * batch / 256
    logger.info(
        "%d pictures; %g epochs x %d iterations of batch %d = %d iterations; "
        "learning rate %g * %d / 256 = %g",
        len(paths),
        settings.epochs,
        iters_per_epoch,
        batch,
        max_iter,
        settings.base_lr,
        batch,
        lr,
    )
    seed_everything(settings.seed)
    model = build_model(cfg).to(device)
    groups = param_groups_weight_decay(model, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=tuple(settings.betas))
    trainer = Trainer(
        wrap_ddp(model, settings.ddp, device),
        data_loader=None,
        optimizer=optimizer,
        device=device,
        dtype=resolve_precision(settings.precision, device),
        accumulation_steps=settings.accumulation_steps,
        clip_grad_norm=settings.clip_grad_norm,
    )
    checkpointer = Checkpointer(trainer.model, settings.output_dir, trainer=trainer)
    schedule = warmup_cosine_schedule(settings.warmup_epochs / settings.epochs)
    period = max(1, round(settings.checkpoint_epochs * iters_per_epoch))
    bad_images = CountBadImages(
        Path(settings.output_dir, "bad_images.txt"),
        cfg.data.max_bad_fraction,
        len(paths),
        batch,
        checkpointer,
        resume,
    )
    trainer.compute_losses = _compute_losses(device, bad_images)
    hooks = standard_hooks(
        settings, checkpointer, schedule, max_iter, batch, period, settings.max_to_keep
    )
    hooks.insert(-2, bad_images)  # before the writers, like an evaluation, and StopOnSignal
    trainer.register_hooks(hooks)

    start_iter = 0
    if resume:
        checkpointer.resume()
        start_iter = trainer.iter + 1
    transform = PretrainTransform(
        model.img_size, cfg.data.crop_scale, cfg.data.flip, cfg.data.max_megapixels
    )
    trainer.data_loader = stream_loader(
        SeededDataset(paths, ReplaceUnreadable(transform), settings.seed),
        batch,
        settings.seed,
        start_iter,
        settings.accumulation_steps,
        cfg.data.num_workers,
        collate_images,
        pin_memory=device.type == "cuda",
        permutation=paths.permutation,
    )
    save_config(cfg)
    trainer.train(start_iter, max_iter)
    path = Path(settings.output_dir, "backbone_final.pth")
    if comm.is_main_process():
        save_backbone(path, model.state_dict(), backbone_meta(model, settings.epochs))
        write_pictures(model, paths, settings.output_dir)
        logger.info("The backbone for the next stage: %s", path)
    return path


def _as_list(path) -> list[str]:
    return [str(p) for p in path] if OmegaConf.is_list(path) else [str(path)]


def _compute_losses(device: torch.device, bad_images: CountBadImages):
    def compute(model: nn.Module, batch: tuple[Tensor, list[BadImage]]) -> dict[str, Tensor]:
        images, failed = batch
        bad_images.add(failed)
        return {"loss": model(images.to(device, non_blocking=True)).loss}

    return compute


def backbone_meta(model: nn.Module, epochs: float) -> dict:
    """The plain-data ``meta`` of a backbone file."""
    return model.architecture | {"epochs": epochs, "code_version": lomar_det.__version__}


def write_pictures(model: nn.Module, paths: ImageList, output_dir: str | Path) -> None:
    """``reconstruction.png`` and ``loss.png``, for people who would rather look than read."""
    if isinstance(model, LoMaR) and (spread := pick_readable(paths, 4)):
        reconstruction_sheet(model, spread, Path(output_dir, "reconstruction.png"))
    metrics = Path(output_dir, "metrics.json")
    if metrics.is_file():
        plot_loss(read_metrics(metrics), Path(output_dir, "loss.png"))


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a ``metrics.json``; after a resume, the later line of an iteration counts."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
    return [by_iter for _, by_iter in sorted({m["iteration"]: m for m in lines}.items())]
