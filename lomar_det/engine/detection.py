"""Training and evaluating a detector from a LazyConfig: what `tools/train_net.py` runs."""

import argparse
import copy
import json
import logging
import math
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import load_weights, read_state_dict
from ..data import configure_data
from ..data.classes import ClassNames, check_class_names, dataset_classes
from ..data.loader import instantiate_data
from ..data.setup import switch_masks_off
from ..errors import UserError
from ..stream import seed_everything
from .checkpointer import Checkpointer
from .config import build_model, load_config
from .hooks import standard_hooks
from .launch import save_config, setup_run
from .precision import autocast, resolve_precision
from .trainer import Trainer, wrap_ddp

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> dict:
    """Trains or, with ``--eval-only``, evaluates; returns the last COCO results.

    Raises:
        UserError: anything the user can mend.
    """
    cfg = load_config(args.config_file, args.opts)
    device = setup_run(cfg)
    # The data is looked at after the loggers exist, so that what it decides is on record.
    configure_data(cfg, training=not args.eval_only)
    _build_evaluator(cfg)  # what is wrong with it shows now, not after hours of training
    seed_everything(cfg.train.seed)
    if args.eval_only:
        return evaluate_checkpoint(cfg, device)
    return train(cfg, build_model(cfg).to(device), device, args.resume)


def evaluate_checkpoint(cfg: DictConfig, device: torch.device) -> dict:
    """COCO metrics of ``train.init_checkpoint``, which must hold the whole detector."""
    if not cfg.train.init_checkpoint:
        raise UserError("--eval-only needs weights: train.init_checkpoint=FILE")
    save_config(cfg, "config_eval.yaml")
    names, meta = read_state_dict(cfg.train.init_checkpoint)
    given = dataset_classes(cfg.dataloader.test.dataset)
    check_class_names(meta.get("class_names"), given, cfg.train.init_checkpoint)
    if not any("mask_head" in name for name in names) and any("roi_heads" in n for n in names):
        switch_masks_off(cfg)  # it was trained on boxes only
    model = build_model(cfg).to(device)
    report = load_weights(model, cfg.train.init_checkpoint)
    missing = [name for name in report.initialised if not name.startswith("pixel_")]
    reshaped = [f"{name}, {why}" for name, why in report.dropped.items() if "shape" in why]
    if reshaped:
        raise UserError(
            f"{cfg.train.init_checkpoint} is a detector for other classes: {reshaped[0]}; "
            "data.val.annotations must list the categories it was trained on"
        )
    if missing:
        raise UserError(
            f"{cfg.train.init_checkpoint} is not a checkpoint of the whole detector: "
            f"{len(missing)} tensors are missing, first {missing[0]}"
        )
    return evaluate(cfg, model)


def evaluate(cfg: DictConfig, model: nn.Module) -> dict:
    """COCO metrics on ``cfg.dataloader.test``: printed, and written to ``metrics_test.json``."""
    evaluator = _build_evaluator(cfg)
    if evaluator is None:
        logger.warning("dataloader.evaluator is null: nothing is evaluated")
        return {}
    device = torch.device(cfg.train.device)
    with autocast(device, resolve_precision(cfg.train.precision, device)):
        results = inference_on_dataset(model, instantiate_data(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
        write_results(results, Path(cfg.train.output_dir, "metrics_test.json"))
    return results


def _build_evaluator(cfg: DictConfig) -> DatasetEvaluator | None:
    settings = cfg.dataloader.get("evaluator")
    if settings is None:
        return None
    settings.output_dir = str(Path(cfg.train.output_dir, "inference"))
    return instantiate_data(settings)


def write_results(results: dict, path: Path) -> None:
    """COCO results as JSON; a metric without ground truth (no large objects, say) is null."""
    plain = {
        task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for task, metrics in results.items()
    }
    path.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n")


def train(cfg: DictConfig, model: nn.Module, device: torch.device, resume: bool) -> dict:
    """The training run of a config; returns the COCO results of the last evaluation."""
    if not isinstance(cfg.train.max_iter, int) or cfg.train.max_iter < 1:
        raise UserError(f"train.max_iter={cfg.train.max_iter} must be a whole number, at least 1")
    full_config = copy.deepcopy(cfg)  # before live objects enter it
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    model = wrap_ddp(model, cfg.train.ddp, device)
    checkpointer = Checkpointer(model, cfg.train.output_dir)
    trainer = Trainer(
        model,
        data_loader=None,
        optimizer=optimizer,
        device=device,
        dtype=resolve_precision(cfg.train.precision, device),
        accumulation_steps=cfg.train.accumulation_steps,
        clip_grad_norm=cfg.train.clip_grad_norm,
    )
    checkpointer.add_checkpointable("trainer", trainer)
    classes = dataset_classes(cfg.dataloader.train.dataset)
    checkpointer.add_checkpointable("meta", ClassNames(classes))
    results: dict = {}

    def evaluate_and_keep() -> dict:
        results.update(evaluate(cfg, model))
        return results

    trainer.register_hooks(
        standard_hooks(
            cfg.train,
            checkpointer,
            instantiate(cfg.lr_multiplier),
            cfg.train.max_iter,
            cfg.dataloader.train.total_batch_size,
            cfg.train.checkpointer.period,
            cfg.train.checkpointer.max_to_keep,
            EvalHook(cfg.train.eval_period, evaluate_and_keep),
        )
    )

    start_iter = 0
    if resume:
        checkpointer.resume()
        start_iter = trainer.iter + 1
    elif cfg.train.init_checkpoint:
        load_weights(getattr(model, "module", model), cfg.train.init_checkpoint)
    else:
        logger.warning("train.init_checkpoint is empty: training from random weights")
    cfg.dataloader.train.seed = cfg.train.seed
    cfg.dataloader.train.start_iter = start_iter
    cfg.dataloader.train.accumulation_steps = cfg.train.accumulation_steps
    trainer.data_loader = instantiate_data(cfg.dataloader.train)
    save_config(full_config)
    trainer.train(start_iter, cfg.train.max_iter)
    return results
