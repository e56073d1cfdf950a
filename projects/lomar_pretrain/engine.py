"""The pretraining run: what `tools/pretrain.py` does.

Needs detectron2 for its trainer, hooks and writers; models and data do not.
"""

import argparse
import contextlib
import json
import logging
from pathlib import Path

from lomar_det.compat import require_detectron2

require_detectron2()

import torch
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

import lomar_det
from lomar_det.checkpoint import load_encoder_weights, save_backbone
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
from lomar_det.engine.config import as_list, build_model, load_config, require_sections
from lomar_det.errors import UserError
from lomar_det.settings import FLAG, RUN_RULES, check_settings, number, one_of, pair, whole
from lomar_det.stream import (
    SeededDataset,
    count_accumulation_steps,
    seed_everything,
    stream_loader,
)

from .bad_images import ReplaceUnreadable, collate_images
from .data import PretrainTransform, WithNoise, normalize
from .hooks import CountBadImages, evaluation_hooks
from .pictures import plot_training
from .sources import find_images

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
    model = build_model(cfg).to(device)  # before the pictures are looked for: it may be impossible
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


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a ``metrics.json``; after a resume, the later line of an iteration counts.

    A line that a crash or a full disk has cut off is left out.
    """
    if not Path(path).is_file():
        return []
    by_iteration = {}
    for line in Path(path).read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            metrics = json.loads(line)
            by_iteration[metrics["iteration"]] = metrics
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]
