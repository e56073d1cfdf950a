"""Image classification with a pretrained encoder: what `tools/finetune.py` runs."""

import argparse
import functools
import logging
from operator import itemgetter
from pathlib import Path

import torch
from detectron2.data.samplers import InferenceSampler
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import inference_context, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lomar_det.checkpoint import load_encoder_weights, read_state_dict
from lomar_det.config.lazy import load_config, require_sections
from lomar_det.config.rules import RUN_RULES, TEXT, check_settings, number, one_of, pair, whole
from lomar_det.data.classes import check_class_names
from lomar_det.data.stream import (
    SeededDataset,
    count_accumulation_steps,
    quiet_worker,
    seed_everything,
    stream_loader,
)
from lomar_det.detection.train import write_results
from lomar_det.engine import (
    BestModel,
    Checkpointer,
    autocast_as_set,
    build_trainer,
    check_output_dir,
    check_warmup,
    delete_old_run,
    hooks_by_epochs,
    plan_epochs,
    save_config,
    setup_run,
)
from lomar_det.errors import UserError
from lomar_det.modeling.build import build_model

from ..data.class_folders import FindReadable, LabelledImages, MarkUnreadable
from ..data.unreadable import ReplaceUnreadable, collate_images
from .classification import (
    AccuracyEvaluator,
    MixedLoss,
    build_optimizer,
    eval_transform,
    read_class_folders,
    train_transform,
)
from .hooks import CountBadImages, bad_images_path
from .knn import extract_features, knn_accuracy

logger = logging.getLogger(__name__)

_RULES = RUN_RULES | {
    "data.val_fraction": number("(0, 1)"),
    "data.max_bad_fraction": number("[0, 1]"),
    "data.num_workers": whole(0),
    "data.crop_pct": number("(0, 1]"),
    "data.augmentation.scale": pair(number("(0, 1]"), ascending=True),
    "data.augmentation.hflip": number("[0, 1]"),
    "data.augmentation.re_prob": number("[0, 1]") | one_of(None),
    "train.optimizer": TEXT,
    "train.best_metric": TEXT | one_of(None),
    "train.epochs": number("(0, inf)"),
    "train.warmup_epochs": number("[0, inf)"),
    "train.base_lr": number("(0, inf)"),
    "train.total_batch_size": whole(1),
    "train.betas": pair(number("[0, 1)")),
    "train.weight_decay": number("[0, inf)"),
    "train.layer_decay": number("(0, 1]") | one_of(None),
    "train.mixup": number("[0, inf)"),
    "train.cutmix": number("[0, inf)"),
    "train.label_smoothing": number("[0, 1)"),
    "train.knn": whole(1) | one_of(None),
    "train.eval_epochs": number("[0, inf)"),
    "train.checkpoint_epochs": number("(0, inf)"),
    "train.max_to_keep": whole(1) | one_of(None),
    "train.milestone_epochs": number("(0, inf)") | one_of(None),
}


def main(args: argparse.Namespace) -> dict:
    """Trains or, with ``--eval-only``, evaluates; returns the last results.

    Raises:
        UserError: anything the user can mend.
    """
    cfg = load_config(args.config_file, args.opts)
    needed = "model", "data.augmentation", "train.warmup_epochs", "train.output_dir"
    require_sections(cfg, args.config_file, "imagenet", *needed)
    if OmegaConf.is_missing(cfg.data, "path"):
        raise UserError("data.path is not set: give the folder of your class folders")
    check_settings(cfg, _RULES)
    check_warmup(cfg.train)
    setup_run(cfg)
    training = not (args.eval_only or cfg.train.knn)
    resume = training and check_output_dir(cfg.train, args.resume)
    seed_everything(cfg.train.seed)
    train_samples, val_samples, classes = read_class_folders(
        cfg.data.path, cfg.data.val_fraction, cfg.train.seed
    )
    cfg.model.num_classes = len(classes)
    model = build_model(cfg).to(cfg.train.device)
    val_set = LabelledImages(val_samples, eval_transform(model.img_size, cfg.data.crop_pct))
    logger.info(
        "%d classes, %d images to train on, %d to validate",
        len(classes),
        len(train_samples),
        len(val_samples),
    )
    if cfg.train.knn:
        return evaluate_knn(cfg, model, LabelledImages(train_samples, val_set.transform), val_set)
    if args.eval_only:
        return evaluate_checkpoint(cfg, model, val_set, classes)
    transform = train_transform(model.img_size, cfg.data.augmentation)
    train_set = LabelledImages(train_samples, transform)
    return train(cfg, model, train_set, val_set, classes, resume)


def train(
    cfg: DictConfig,
    model: nn.Module,
    train_set: LabelledImages,
    val_set: LabelledImages,
    classes: list[str],
    resume: bool,
) -> dict:
    """The training run of a config; returns the accuracy of the last evaluation."""
    settings, batch = cfg.train, cfg.train.total_batch_size
    accumulation_steps = count_accumulation_steps(
        batch, settings.max_batch_per_gpu, settings.accumulation_steps
    )
    plan = plan_epochs(settings, len(train_set))
    if not resume:
        init_encoder(cfg, model)
    trainer = build_trainer(
        settings,
        model,
        build_optimizer(model, settings, plan.lr),
        accumulation_steps,
    )
    meta = {"classes": classes}
    checkpointer = Checkpointer(trainer.model, settings.output_dir, meta=meta, trainer=trainer)
    bad_images = CountBadImages(cfg, len(train_set), checkpointer, resume)
    trainer.compute_losses = bad_images.watch(MixedLoss(settings, cfg.model.num_classes))
    find_readable = _find_readable(cfg, val_set, "Validation")
    best = BestModel(checkpointer, settings.best_metric)
    results: dict = {}

    def evaluate_and_keep() -> dict:
        try:
            results.update(evaluate(cfg, trainer.eval_model, val_set, find_readable))
        except UserError:
            if trainer.iter + 1 < plan.max_iter:  # else there is a model_final.pth
                bad_images.save()
            raise
        best.update(results, trainer.eval_model, min(trainer.iter + 1, plan.max_iter))
        return results

    evaluation = EvalHook(plan.period(settings.eval_epochs) or 0, evaluate_and_keep)
    trainer.register_hooks(hooks_by_epochs(settings, checkpointer, plan, [bad_images, evaluation]))
    start_iter = 0
    if resume:
        start_iter = checkpointer.resume(plan.max_iter)
        if start_iter == plan.max_iter:  # it may have been killed in its last evaluation
            return evaluate_and_keep()
    trainer.data_loader = stream_loader(
        SeededDataset(
            train_set.samples, ReplaceUnreadable(train_set.load, itemgetter(0)), settings.seed
        ),
        batch,
        settings.seed,
        start_iter,
        accumulation_steps,
        cfg.data.num_workers,
        collate_images,
        pin_memory=settings.device.startswith("cuda"),
    )
    if not resume:
        delete_old_run(settings)
    save_config(cfg)
    trainer.train(start_iter, plan.max_iter)
    return results


def init_encoder(cfg: DictConfig, model: nn.Module) -> None:
    """Loads ``train.init_checkpoint`` into the encoder, and into the head where it fits."""
    if cfg.train.init_checkpoint:
        load_encoder_weights(getattr(model, "encoder", model), cfg.train.init_checkpoint)
    else:
        logger.warning("train.init_checkpoint is empty: the encoder has random weights")


def evaluate_checkpoint(
    cfg: DictConfig, model: nn.Module, val_set: LabelledImages, classes: list[str]
) -> dict:
    """Accuracy of ``train.init_checkpoint``, which must hold the whole classifier."""
    path, own = cfg.train.init_checkpoint, model.state_dict()
    if not path:
        raise UserError("--eval-only needs weights: train.init_checkpoint=FILE")
    tensors, meta = read_state_dict(path)
    check_class_names(meta.get("classes"), classes, path)
    differ = [
        n for n, own_value in own.items() if n not in tensors or tensors[n].shape != own_value.shape
    ]
    if differ:
        raise UserError(
            f"{path} is not a checkpoint of this classifier of {cfg.model.num_classes} classes: "
            f"{len(differ)} tensors are missing or have another shape, first {differ[0]}; give the "
            "config and the data that it was trained with"
        )
    save_config(cfg, "config_eval.yaml")
    model.load_state_dict({name: tensors[name] for name in own})
    logger.info("Weights from %s: %d tensors loaded", path, len(own))
    return evaluate(cfg, model, val_set, _find_readable(cfg, val_set, "Validation"))


def evaluate(
    cfg: DictConfig, model: nn.Module, val_set: LabelledImages, find_readable: FindReadable
) -> dict:
    """Top-1 and top-5 accuracy: printed, and written to ``metrics_test.json``."""

    def predict(batch: tuple[Tensor, Tensor]) -> Tensor:
        with autocast_as_set(cfg.train):
            return model(batch[0].to(cfg.train.device, non_blocking=True))

    with inference_context(model):
        evaluator = AccuracyEvaluator(find_readable)
        results = inference_on_dataset(predict, _eval_loader(cfg, val_set, model), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
        write_results(results, Path(cfg.train.output_dir, "metrics_test.json"))
    return results


def evaluate_knn(
    cfg: DictConfig, model: nn.Module, train_set: LabelledImages, val_set: LabelledImages
) -> dict:
    """Accuracy by the nearest training images (see `knn_accuracy`); nothing is trained."""
    if comm.get_world_size() > 1:
        raise UserError("train.knn runs in one process: leave --num-gpus out")
    init_encoder(cfg, model)
    save_config(cfg, "config_eval.yaml")
    encoder = getattr(model, "encoder", model).eval()

    def extract(images: LabelledImages) -> tuple[Tensor, Tensor]:
        autocast = functools.partial(autocast_as_set, cfg.train)
        features, labels = extract_features(encoder, _eval_loader(cfg, images, model), autocast)
        readable = _find_readable(cfg, images, "kNN")(labels)
        return features[readable], labels[readable]

    measured = extract(val_set)
    top1 = 100 * knn_accuracy(*extract(train_set), *measured, cfg.train.knn)
    results = {"classification": {"knn_top1": top1, "images": len(measured[1])}}
    print_csv_format(results)
    write_results(results, Path(cfg.train.output_dir, "metrics_test.json"))
    return results


def _find_readable(cfg: DictConfig, images: LabelledImages, purpose: str) -> FindReadable:
    listed_in = bad_images_path(cfg) if comm.is_main_process() else None
    return FindReadable(images.samples, purpose, listed_in, cfg.data.max_bad_fraction)


def _eval_loader(cfg: DictConfig, images: LabelledImages, model: nn.Module) -> DataLoader:
    """Every image once, in order; of several processes, each takes its share."""
    return DataLoader(
        MarkUnreadable(images, model.img_size),
        batch_size=cfg.train.max_batch_per_gpu,
        sampler=InferenceSampler(len(images)),
        num_workers=cfg.data.num_workers,
        worker_init_fn=quiet_worker,
        # Starting the loader draws a number: not from the run's generator.
        generator=torch.Generator().manual_seed(0),
        pin_memory=cfg.train.device.startswith("cuda"),
    )
