"""The pretraining run: what `tools/pretrain.py` and `lomar_pretrain.pretrain` do."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from os import fspath
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

import lomar_det
from lomar_det.checkpoint import load_encoder_weights, reinit_blocks, save_backbone
from lomar_det.config.lazy import as_list, find_config, load_config, require_sections
from lomar_det.data.images import load_image
from lomar_det.data.stream import SeededDataset, seed_everything, stream_loader
from lomar_det.engine.fit import fit
from lomar_det.engine.schedules import check_warmup, plan_epochs
from lomar_det.engine.setup import Run, save_config, setup_run
from lomar_det.engine.writers import read_metrics
from lomar_det.modeling.build import build_model

from ..data.native_scale import RegionList, ViewsAtScale, views_as_images, warn_of_shrinking
from ..data.sources import ImageList, find_images
from ..data.transforms import PretrainTransform, WithNoise, normalize
from ..data.unreadable import ReplaceUnreadable, collate_images
from ..figures.plots import plot_training
from ..models.lomar import LoMaR
from ..models.mae import MAE
from .bad_images import CountBadImages
from .empty_views import CountEmpty
from .loss_constant import LossConstant, log_explained
from .progress import progress_hooks
from .settings import PretrainData, PretrainSettings

logger = logging.getLogger(__name__)

MAIN_RECIPE = "lomar_vit_b_224_1600ep"


def pretrain(
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    config: str | Path = MAIN_RECIPE,
    resume: bool = False,
    **overrides: Any,
) -> Path:
    """Pretrains on unlabelled images in this process; the same run as that of the tool.

    It uses one process and one device; for several GPUs, use the tool. It seeds the global random
    generators, and needs detectron2.

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
        output: Folder for checkpoints, logs and drawings.
        config: A recipe's name (a file in ``configs/pretrain/``) or the path of a config file.
        resume: Continue from the last checkpoint in ``output``.
        overrides: Settings of the config: sections as dicts, or single settings by dotted name.

    Returns:
        The path of ``backbone_final.pth``, for the next stage.

    Raises:
        UserError: anything the user can mend.
    """
    folders = fspath(data) if isinstance(data, str | Path) else [fspath(item) for item in data]
    values = overrides | {"data.path": folders, "train.output_dir": fspath(output)}
    cfg = load_config(find_config(config, "pretrain"), [], dict(_flatten(values)))
    return run_pretraining(cfg, resume)


def _flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Turns dicts into single settings, so that a mistyped one is noticed in either form."""
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
    return run_pretraining(cfg, args.resume)


def run_pretraining(cfg: DictConfig, resume: bool = False) -> Path:
    """Pretrains from a loaded config; returns the path of ``backbone_final.pth``."""
    settings = PretrainSettings.read(cfg, "train")
    data = PretrainData.read(cfg, "data")
    check_warmup(settings)
    run = setup_run(settings, settings.total_batch_size, resume)
    seed_everything(settings.seed)
    # Before the search for images: settings of the model may be wrong.
    model = build_model(cfg).to(run.device)
    images = find_images(as_list(data.path), data.image_root)
    return train(run, data, model, images, partial(save_config, cfg, run.output_dir))


def train(run: Run, data: PretrainData, model: LoMaR | MAE, images: ImageList, save_config) -> Path:
    """Trains the model on the images; returns the path of ``backbone_final.pth``."""
    settings: PretrainSettings = run.settings
    sample, samples = make_sample(data, model), list_samples(data, images)
    if comm.is_main_process() and data.region_size is None:
        warn_of_shrinking(images, data.crop_scale, model.img_size)
    plan, lr = plan_epochs(settings, len(samples))
    meta = backbone_meta(model, None if plan.by_the_clock else settings.epochs)
    meta |= {"ema_decay": settings.ema_decay}
    # Before the checkpoint is loaded: the probe measures random weights first.
    open_example = sample.transform.open_example if data.region_size else load_image
    hooks = progress_hooks(
        run, model, samples, plan.iters_per_epoch, data.num_workers, open_example
    )
    if settings.init_checkpoint and not run.resume:
        load_encoder_weights(model, settings.init_checkpoint)
        reinit_blocks(model, settings.reinit_blocks)
    optimizer = torch.optim.AdamW(
        param_groups_weight_decay(model, settings.weight_decay),
        lr=lr,
        betas=tuple(settings.betas),
        fused=run.device.type == "cuda",
    )
    constant, empty = LossConstant(model, settings.log_period), CountEmpty()
    fitted = fit(
        run,
        plan,
        model,
        optimizer,
        partial(
            stream_loader,
            SeededDataset(samples, sample, settings.seed),
            settings.total_batch_size,
            settings.seed,
            num_workers=data.num_workers,
            collate_fn=collate_images,
            pin_memory=run.device.type == "cuda",
            permutation=samples.permutation,
        ),
        save_config,
        compute_losses=partial(_compute_losses, run.device, constant, empty),
        hooks=[CountBadImages(run, data.max_bad_fraction, len(images)), constant, empty, *hooks],
        meta=meta,
    )
    path = run.output_dir / "backbone_final.pth"
    if comm.is_main_process() and (fitted.trained or not path.is_file()):
        meta["epochs"] = meta["epochs"] or fitted.iterations / plan.iters_per_epoch
        save_backbone(path, fitted.model.state_dict(), meta)
        metrics = read_metrics(run.output_dir / "metrics.json")
        if metrics:
            plot_training(metrics, run.output_dir / "loss.png")
            log_explained(metrics)
        logger.info("The backbone for the next stage: %s", path)
    return path


def make_sample(data: PretrainData, model: LoMaR | MAE) -> ReplaceUnreadable:
    """The function from an image to a crop and the random numbers for its windows or mask.

    With ``data.region_size``, from a part of an image to `ViewsAtScale`.
    """
    limit = data.max_megapixels
    if data.region_size is None:
        transform = PretrainTransform(model.img_size, data.crop_scale, data.flip, limit)
        return ReplaceUnreadable(WithNoise(transform, model.noise_shape))
    views = ViewsAtScale(model, data.region_size, data.scale, data.flip, data.max_empty, limit)
    return ReplaceUnreadable(views)


def list_samples(data: PretrainData, images: ImageList) -> ImageList | RegionList:
    """What an epoch goes through: the images, or with ``data.region_size`` their parts."""
    if data.region_size is None:
        return images
    return RegionList(images, data.region_size, data.max_megapixels)


def _compute_losses(
    device: torch.device,
    constant: LossConstant,
    empty: CountEmpty,
    model: nn.Module,
    batch: list[Tensor],
) -> dict[str, Tensor]:
    images, noise, *redrawn = batch
    if redrawn:  # views of large images, each an image of its own
        empty.watch(images, *redrawn)
        images, noise = views_as_images(images, noise)
    images, noise = (tensor.to(device, non_blocking=True) for tensor in (images, noise))
    images = normalize(images)
    constant.watch(images)
    return {"loss": model(images, noise=noise).loss}


def backbone_meta(model: LoMaR | MAE, epochs: float | None) -> dict:
    """The plain-data ``meta`` of a run's files: architecture, epochs and version of the code."""
    return model.architecture | {"epochs": epochs, "code_version": lomar_det.__version__}
