"""Training and evaluating a detector from a config: what `tools/train_net.py` runs."""

import argparse
import logging
import math
from collections.abc import Callable
from functools import partial

from detectron2.evaluation import inference_on_dataset
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import load_weights
from ..checkpoint.rename import read_checkpoint
from ..config.lazy import instantiate_section, with_settings
from ..config.settings import DetectionSettings
from ..data import configure_data
from ..data.classes import check_class_names, dataset_classes
from ..data.stream import seed_everything
from ..engine.fit import fit
from ..engine.schedules import BY_THE_CLOCK, Plan
from ..engine.setup import Run, setup_run
from ..engine.writers import report_results
from ..errors import UserError
from ..modeling.build import build_model
from .from_checkpoint import load_detector
from .settings import check_detection_config
from .yaml_route import load_any_config, naming_yacs_keys, save_run_config

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> dict:
    """Trains or, with ``--eval-only``, evaluates; returns the last COCO results.

    Raises:
        UserError: anything the user can mend.
    """
    with naming_yacs_keys(args.config_file):
        cfg = load_any_config(args.config_file, args.opts)
        settings = check_detection_config(cfg, args.config_file)
        training = not args.eval_only
        batch = cfg.dataloader.train.total_batch_size if training else 0
        run = setup_run(settings, batch, args.resume)
        # The data is looked at after the loggers exist, so that what it decides is on record.
        facts = configure_data(cfg, training)
        cfg = cfg if facts is None else facts.apply(cfg)
        num_images = cfg.data.get("num_images") if facts is None else facts.num_images
        evaluate = build_evaluation(run, cfg)
        seed_everything(settings.seed)
        if not training:
            return evaluate_checkpoint(run, cfg, evaluate)
        max_iter = count_iterations(settings, batch, num_images, cfg.optimizer.lr)
        return train(run, with_settings(cfg, {"train.max_iter": max_iter}), evaluate)


def train(run: Run, cfg: DictConfig, evaluate: Callable[[nn.Module], dict] | None) -> dict:
    """The training run of a config; returns the COCO results of the last evaluation."""
    settings = run.settings
    model = build_model(cfg).to(run.device)
    if not run.resume:
        _init_weights(model, settings.init_checkpoint)
    params = instantiate_section(cfg, "optimizer.params", model=model)
    checkpointer = settings.checkpointer
    plan = Plan(
        max_iter=cfg.train.max_iter or BY_THE_CLOCK,
        schedule=instantiate_section(cfg, "lr_multiplier"),
        checkpoint_period=checkpointer.period,
        max_to_keep=checkpointer.max_to_keep,
        milestone_period=checkpointer.milestone_period,
        eval_period=settings.eval_period,
        best_metric=checkpointer.best_metric,
    )
    fitted = fit(
        run,
        plan,
        model,
        instantiate_section(cfg, "optimizer", params=params),
        partial(instantiate_section, cfg, "dataloader.train", seed=settings.seed),
        partial(save_run_config, cfg, run.output_dir),
        evaluate=evaluate,
        meta={"classes": dataset_classes(cfg.dataloader.train.dataset)},
    )
    return fitted.results


def _init_weights(model: nn.Module, path: str | None) -> None:
    if path:
        load_weights(model, path)
    else:
        logger.warning("train.init_checkpoint is empty: training from random weights")


def evaluate_checkpoint(
    run: Run, cfg: DictConfig, evaluate: Callable[[nn.Module], dict] | None
) -> dict:
    """COCO metrics of ``train.init_checkpoint``, which must hold the whole detector."""
    if not run.settings.init_checkpoint:
        raise UserError("--eval-only needs weights: train.init_checkpoint=FILE")
    if evaluate is None:
        raise UserError("--eval-only needs an evaluator, and dataloader.evaluator is null")
    found = read_checkpoint(run.settings.init_checkpoint)
    classes = dataset_classes(cfg.dataloader.test.dataset)
    check_class_names(found.meta.get("classes"), classes, found.path)
    save_run_config(cfg, run.output_dir, "config_eval.yaml")
    return evaluate(load_detector(cfg, found, run.device))


def build_evaluation(run: Run, cfg: DictConfig) -> Callable[[nn.Module], dict] | None:
    """COCO metrics of a model on ``dataloader.test``: printed, and in ``metrics_test.json``.

    None where ``dataloader.evaluator`` is null. What is wrong with it shows now, not after hours of
    training.
    """
    if cfg.dataloader.get("evaluator") is None:
        logger.warning("dataloader.evaluator is null: nothing is evaluated")
        return None
    evaluator = instantiate_section(
        cfg, "dataloader.evaluator", output_dir=str(run.output_dir / "inference")
    )

    def evaluate(model: nn.Module) -> dict:
        with run.autocast():
            results = inference_on_dataset(
                model, instantiate_section(cfg, "dataloader.test"), evaluator
            )
        report_results(results, run.output_dir)
        return results

    return evaluate


def count_iterations(
    settings: DetectionSettings, batch: int, num_images: int | None, lr: float
) -> int | None:
    """The length of a run, None if ``train.max_minutes`` decides it; the log shows how.

    Raises:
        UserError: nothing says how long it shall be.
    """
    epochs, max_iter, usual = settings.epochs, settings.max_iter, settings.lr_batch_size
    if usual not in (None, batch):
        logger.warning(
            "the learning rate %g is meant for batch %d, this run has %d; scaled linearly it would "
            "be %g (optimizer.lr)",
            lr,
            usual,
            batch,
            lr * batch / usual,
        )
    if settings.max_minutes is not None:
        logger.info(
            "%g minutes: train.epochs and train.max_iter do not count", settings.max_minutes
        )
        return None
    if max_iter is not None:
        if epochs is not None:
            logger.warning("train.max_iter is set: train.epochs=%g does not count", epochs)
        return max_iter
    if epochs is None or num_images is None:
        raise UserError(
            "give the length of the run: train.epochs, train.max_iter or train.max_minutes"
        )
    max_iter = math.ceil(epochs * num_images / batch)
    logger.info(
        "%g epochs x %d images / batch %d = %d iterations", epochs, num_images, batch, max_iter
    )
    return max_iter
