"""Image classification with a pretrained encoder: what `tools/finetune.py` runs."""

import argparse
import logging
from collections.abc import Callable
from functools import partial
from operator import itemgetter

import torch
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_context, inference_on_dataset
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lomar_det.checkpoint import load_encoder_weights, read_state_dict, reinit_blocks
from lomar_det.config.lazy import load_config, require_sections, with_settings
from lomar_det.data.classes import check_class_names
from lomar_det.data.stream import SeededDataset, quiet_worker, seed_everything, stream_loader
from lomar_det.engine.device import autocast
from lomar_det.engine.fit import fit
from lomar_det.engine.schedules import check_warmup, plan_epochs
from lomar_det.engine.setup import Run, save_config, setup_run
from lomar_det.engine.writers import report_results
from lomar_det.errors import UserError
from lomar_det.modeling.build import build_model

from ..data.class_folders import FindReadable, LabelledImages, MarkUnreadable
from ..data.unreadable import ReplaceUnreadable, collate_images
from .bad_images import CountBadImages, bad_images_path
from .classification import (
    AccuracyEvaluator,
    MixedLoss,
    build_optimizer,
    eval_transform,
    read_class_folders,
    train_transform,
)
from .settings import FinetuneData, FinetuneSettings

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> dict:
    """Trains or, with ``--eval-only``, evaluates; returns the last results.

    Raises:
        UserError: anything the user can mend.
    """
    cfg = load_config(args.config_file, args.opts)
    needed = "model", "data.augmentation", "train.warmup_epochs", "train.output_dir"
    require_sections(cfg, args.config_file, "imagenet", *needed)
    settings = FinetuneSettings.read(cfg, "train")
    data = FinetuneData.read(cfg, "data")
    check_warmup(settings)
    training = not args.eval_only
    run = setup_run(settings, settings.total_batch_size if training else 0, args.resume)
    seed_everything(settings.seed)
    train_samples, val_samples, classes = read_class_folders(
        data.path, data.val_fraction, settings.seed
    )
    cfg = with_settings(cfg, {"model.num_classes": len(classes)})
    model = build_model(cfg).to(run.device)
    logger.info(
        "%d classes, %d images to train on, %d to validate",
        len(classes),
        len(train_samples),
        len(val_samples),
    )
    val_set = LabelledImages(val_samples, eval_transform(model.img_size, data.crop_pct))
    evaluate = build_evaluation(run, data, val_set, model.img_size)
    if not training:
        load_classifier(model, settings.init_checkpoint, classes)
        save_config(cfg, run.output_dir, "config_eval.yaml")
        return evaluate(model)
    train_set = LabelledImages(train_samples, train_transform(model.img_size, data.augmentation))
    save = partial(save_config, cfg, run.output_dir)
    return train(run, data, model, train_set, classes, evaluate, save)


def train(
    run: Run,
    data: FinetuneData,
    model: nn.Module,
    train_set: LabelledImages,
    classes: list[str],
    evaluate: Callable[[nn.Module], dict],
    save_config: Callable[[], None],
) -> dict:
    """The training run; returns the accuracy of the last evaluation."""
    settings: FinetuneSettings = run.settings
    plan, lr = plan_epochs(settings, len(train_set), settings.eval_epochs, settings.best_metric)
    if not run.resume:
        init_encoder(model, settings)
    samples = SeededDataset(
        train_set.samples, ReplaceUnreadable(train_set.load, itemgetter(0)), settings.seed
    )
    fitted = fit(
        run,
        plan,
        model,
        build_optimizer(model, settings, lr),
        partial(
            stream_loader,
            samples,
            settings.total_batch_size,
            settings.seed,
            num_workers=data.num_workers,
            collate_fn=collate_images,
            pin_memory=run.device.type == "cuda",
        ),
        save_config,
        compute_losses=MixedLoss(settings, run.device, len(classes)),
        evaluate=evaluate,
        hooks=[CountBadImages(run, data.max_bad_fraction, len(train_set))],
        meta={"classes": classes},
    )
    return fitted.results


def init_encoder(model: nn.Module, settings: FinetuneSettings) -> None:
    """Loads ``train.init_checkpoint`` into the encoder, and into the head where it fits."""
    encoder = getattr(model, "encoder", model)
    if settings.init_checkpoint:
        load_encoder_weights(encoder, settings.init_checkpoint)
        reinit_blocks(encoder, settings.reinit_blocks)
    else:
        logger.warning("train.init_checkpoint is empty: the encoder has random weights")


def load_classifier(model: nn.Module, path: str | None, classes: list[str]) -> None:
    """Loads ``train.init_checkpoint``, which must hold the whole classifier of these classes."""
    if not path:
        raise UserError("--eval-only needs a checkpoint: train.init_checkpoint=FILE")
    tensors, meta = read_state_dict(path)
    check_class_names(meta.get("classes"), classes, path)
    own = model.state_dict()
    differ = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    if differ:
        raise UserError(
            f"{path} is not a checkpoint of this classifier of {len(classes)} classes: "
            f"{len(differ)} tensors are missing or have another shape, first {differ[0]}; give the "
            "config and the data that it was trained with"
        )
    model.load_state_dict({name: tensors[name] for name in own})
    logger.info("Weights from %s: %d tensors loaded", path, len(own))


def build_evaluation(
    run: Run, data: FinetuneData, val_set: LabelledImages, img_size: tuple[int, int]
) -> Callable[[nn.Module], dict]:
    """Builds the function that computes top-1 and top-5 accuracy of a model.

    The function also prints the accuracies and writes ``metrics_test.json``.
    """
    listed_in = bad_images_path(run) if comm.is_main_process() else None
    find_readable = FindReadable(val_set.samples, "Validation", listed_in, data.max_bad_fraction)

    def evaluate(model: nn.Module) -> dict:
        def predict(batch: tuple[Tensor, Tensor]) -> Tensor:
            with autocast(run.device, run.dtype):
                return model(batch[0].to(run.device, non_blocking=True))

        # Every image once, in order; each of several processes takes its share.
        loader = DataLoader(
            MarkUnreadable(val_set, img_size),
            batch_size=run.settings.max_batch_per_gpu,
            sampler=InferenceSampler(len(val_set)),
            num_workers=data.num_workers,
            worker_init_fn=quiet_worker,
            # Starting the loader draws a number, which must not come from the run's generator.
            generator=torch.Generator().manual_seed(0),
            pin_memory=run.device.type == "cuda",
        )
        with inference_context(model):
            results = inference_on_dataset(predict, loader, AccuracyEvaluator(find_readable))
        report_results(results, run.output_dir)
        return results

    return evaluate
