"""Training and evaluating a detector from a config: what `tools/train_net.py` runs."""

import argparse
import copy
import json
import logging
import math
from pathlib import Path

import torch
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import load_weights
from ..config.lazy import instantiate_section, require_sections
from ..config.rules import FLAG, RUN_RULES, TEXT, check_settings, number, one_of, pair, whole
from ..data import configure_data
from ..data.classes import dataset_classes
from ..data.stream import count_accumulation_steps, seed_everything
from ..engine.checkpointer import BestModel, Checkpointer, check_output_dir, delete_old_run
from ..engine.device import autocast_as_set
from ..engine.hooks import standard_hooks
from ..engine.setup import setup_run
from ..engine.trainer import build_trainer
from ..errors import UserError
from ..modeling.build import build_model
from .contradictions import refuse_contradictions
from .from_checkpoint import load_detector
from .yaml_route import load_any_config, save_run_config, worded_for

logger = logging.getLogger(__name__)

_RULES = RUN_RULES | {
    "train.max_iter": whole(1) | one_of(None),
    "train.epochs": number("(0, inf)") | one_of(None),
    "train.lr_batch_size": whole(1) | one_of(None),
    "train.eval_period": whole(0),
    "train.checkpointer.best_metric": TEXT | one_of(None),
    "train.checkpointer.period": whole(1),
    "train.checkpointer.max_to_keep": whole(1) | one_of(None),
    "train.checkpointer.milestone_period": whole(1) | one_of(None),
    "data.image_size": whole(1),
    "data.min_scale": number("(0, inf)"),
    "data.max_scale": number("(0, inf)"),
    "data.filter_empty": FLAG,
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


def main(args: argparse.Namespace) -> dict:
    """Trains or, with ``--eval-only``, evaluates; returns the last COCO results.

    Raises:
        UserError: anything the user can mend.
    """
    with worded_for(args.config_file):
        cfg = load_any_config(args.config_file, args.opts)
        needed = "model", "data", "dataloader.train", "optimizer", "lr_multiplier", "train.max_iter"
        require_sections(cfg, args.config_file, "coco and configs/custom", *needed)
        check_settings(cfg, _RULES)
        refuse_contradictions(cfg)
        device = setup_run(cfg)
        training = not args.eval_only
        resume = training and check_output_dir(cfg.train, args.resume)
        batch = cfg.dataloader.train.total_batch_size
        accumulation_steps = training and count_accumulation_steps(
            batch, cfg.train.max_batch_per_gpu, cfg.train.accumulation_steps
        )
        # The data is looked at after the loggers exist, so that what it decides is on record.
        configure_data(cfg, training)
        _build_evaluator(cfg)  # what is wrong with it shows now, not after hours of training
        seed_everything(cfg.train.seed)
        if not training:
            return evaluate_checkpoint(cfg, device)
        return train(cfg, build_model(cfg).to(device), accumulation_steps, resume)


def evaluate_checkpoint(cfg: DictConfig, device: torch.device) -> dict:
    """COCO metrics of ``train.init_checkpoint``, which must hold the whole detector."""
    if not cfg.train.init_checkpoint:
        raise UserError("--eval-only needs weights: train.init_checkpoint=FILE")
    save_run_config(cfg, "config_eval.yaml")
    classes = dataset_classes(cfg.dataloader.test.dataset)
    return evaluate(cfg, load_detector(cfg, device, classes))


def evaluate(cfg: DictConfig, model: nn.Module) -> dict:
    """COCO metrics on ``cfg.dataloader.test``: printed, and written to ``metrics_test.json``."""
    evaluator = _build_evaluator(cfg)
    if evaluator is None:
        logger.warning("dataloader.evaluator is null: nothing is evaluated")
        return {}
    with autocast_as_set(cfg.train):
        results = inference_on_dataset(
            model, instantiate_section(cfg, "dataloader.test"), evaluator
        )
    if comm.is_main_process():
        print_csv_format(results)
        write_results(results, Path(cfg.train.output_dir, "metrics_test.json"))
    return results


def _build_evaluator(cfg: DictConfig) -> DatasetEvaluator | None:
    settings = cfg.dataloader.get("evaluator")
    if settings is None:
        return None
    settings.output_dir = str(Path(cfg.train.output_dir, "inference"))
    return instantiate_section(cfg, "dataloader.evaluator")


def write_results(results: dict, path: Path) -> None:
    """COCO results as JSON; a metric without ground truth (no large objects, say) is null."""
    plain = {
        task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for task, metrics in results.items()
    }
    path.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n")


def train(cfg: DictConfig, model: nn.Module, accumulation_steps: int, resume: bool) -> dict:
    """The training run of a config; returns the COCO results of the last evaluation."""
    full_config = copy.deepcopy(cfg)  # before live objects enter it
    if not resume:
        _init_weights(cfg, model)
    cfg.optimizer.params.model = model
    trainer = build_trainer(
        cfg.train, model, instantiate_section(cfg, "optimizer"), accumulation_steps
    )
    meta = {"classes": dataset_classes(cfg.dataloader.train.dataset)}
    checkpointer = Checkpointer(trainer.model, cfg.train.output_dir, meta=meta, trainer=trainer)
    best = BestModel(checkpointer, cfg.train.checkpointer.best_metric)
    results: dict = {}

    def evaluate_and_keep() -> dict:
        results.update(evaluate(cfg, trainer.eval_model))
        best.update(results, trainer.eval_model, min(trainer.iter + 1, cfg.train.max_iter))
        return results

    trainer.register_hooks(
        standard_hooks(
            cfg.train,
            checkpointer,
            instantiate_section(cfg, "lr_multiplier"),
            cfg.train.max_iter,
            cfg.dataloader.train.total_batch_size,
            cfg.train.checkpointer.period,
            cfg.train.checkpointer.max_to_keep,
            cfg.train.checkpointer.milestone_period,
            [EvalHook(cfg.train.eval_period, evaluate_and_keep)],
        )
    )

    start_iter = 0
    if resume:
        start_iter = checkpointer.resume(cfg.train.max_iter)
        if start_iter == cfg.train.max_iter:  # it may have been killed in its last evaluation
            return evaluate_and_keep()
    cfg.dataloader.train.seed = cfg.train.seed
    cfg.dataloader.train.start_iter = start_iter
    cfg.dataloader.train.accumulation_steps = accumulation_steps
    trainer.data_loader = instantiate_section(cfg, "dataloader.train")
    if not resume:
        delete_old_run(cfg.train)
    save_run_config(full_config)
    trainer.train(start_iter, cfg.train.max_iter)
    return results


def _init_weights(cfg: DictConfig, model: nn.Module) -> None:
    path = cfg.train.init_checkpoint
    if not path:
        logger.warning("train.init_checkpoint is empty: training from random weights")
        return
    load_weights(model, path)
