"""Training and evaluating a detector from a config: what `tools/train_net.py` runs."""

import argparse
import logging
from collections.abc import Callable
from functools import partial

from omegaconf import DictConfig
from torch import nn

from ..checkpoint import find_encoder, load_weights, reinit_blocks
from ..checkpoint.rename import read_checkpoint
from ..config.lazy import instantiate_section, with_settings
from ..config.settings import DetectionSettings
from ..data import configure_data
from ..data.classes import dataset_classes
from ..data.stream import seed_everything
from ..engine.fit import fit
from ..engine.schedules import BY_THE_CLOCK, Plan, count_iterations
from ..engine.setup import Run, setup_run
from ..errors import UserError
from ..modeling.build import build_model
from .evaluation import build_evaluation
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
        batch = 0 if args.eval_only else cfg.dataloader.train.total_batch_size
        run = setup_run(settings, batch, args.resume)
        # Reads the data after the loggers exist, so that the log tells what the data decide.
        facts = configure_data(cfg, training=not args.eval_only)
        cfg = cfg if facts is None else facts.apply(cfg)
        classes = dataset_classes(cfg.dataloader.test.dataset)
        evaluate = build_evaluation(cfg, run)  # a wrong setting shows now, not after hours
        if args.eval_only:
            if not settings.init_checkpoint or evaluate is None:
                raise UserError(
                    "--eval-only needs a checkpoint, train.init_checkpoint=FILE, and an evaluator, "
                    "dataloader.evaluator"
                )
            found = read_checkpoint(settings.init_checkpoint)
            model = load_detector(cfg, found, run.device, classes)
            save_run_config(cfg, run.output_dir, "config_eval.yaml")
            return evaluate(model)
        num_images = cfg.data.get("num_images") if facts is None else facts.num_images
        max_iter = count_iterations(settings, batch, num_images, cfg.optimizer.lr)
        return train(run, with_settings(cfg, {"train.max_iter": max_iter}), classes, evaluate)


def train(
    run: Run,
    cfg: DictConfig,
    classes: list[str],
    evaluate: Callable[[nn.Module], dict] | None,
) -> dict:
    """The training run of a config; returns the COCO results of the last evaluation."""
    settings, checkpointer = run.settings, run.settings.checkpointer
    seed_everything(settings.seed)  # not earlier: checking the images draws numbers
    model = build_model(cfg).to(run.device)
    if not run.resume:
        _init_weights(model, settings)
    params = instantiate_section(cfg, "optimizer.params", model=model)
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
        meta={"classes": classes},
    )
    return fitted.results


def _init_weights(model: nn.Module, settings: DetectionSettings) -> None:
    if settings.init_checkpoint:
        load_weights(model, settings.init_checkpoint)
        reinit_blocks(find_encoder(model)[1], settings.reinit_blocks)
    else:
        logger.warning("train.init_checkpoint is empty: training from random weights")
