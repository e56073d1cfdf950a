"""`fit` trains a model, from its initial weights to the last checkpoint."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import UserError
from .checkpointer import BestModel, Checkpointer, delete_old_run
from .hooks import Clock, standard_hooks
from .schedules import Plan
from .setup import Run
from .trainer import build_trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """The outcome of a run.

    Attributes:
        model: The trained model, with averaged weights if the run keeps them.
        results: Metrics of the last evaluation.
        iterations: Iterations of the whole run, including those before a resume.
        trained: False if the run was already finished.
    """

    model: nn.Module
    results: dict
    iterations: int
    trained: bool


def fit(
    run: Run,
    plan: Plan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    make_loader: Callable[..., DataLoader],
    save_config: Callable[[], None],
    *,
    compute_losses: Callable[[nn.Module, Any], dict[str, Tensor]] | None = None,
    evaluate: Callable[[nn.Module], dict] | None = None,
    hooks: Sequence[HookBase] = (),
    meta: dict | None = None,
) -> Fitted:
    """Trains a model, or continues its training.

    Args:
        run: The run, set up.
        plan: How long the run is, and when it evaluates and saves.
        model: The model with its initial weights, on the run's device.
        optimizer: The optimizer of its parameters.
        make_loader: Called with ``start_iter`` and ``accumulation_steps``; returns an endless
            loader of training batches that begins at ``start_iter``.
        save_config: Writes the config into the output folder.
        compute_losses: ``(model, batch) -> {name: loss}``; calls the model by default.
        evaluate: ``model -> {task: {metric: value}}``.
        hooks: Hooks of the stage. They run after the checkpoint and before metrics are written.
        meta: Plain data that every checkpoint holds as ``meta``.

    Raises:
        UserError: the user can mend the cause; the checkpoints written so far are intact.
    """
    trainer = build_trainer(run, model, optimizer, compute_losses)
    checkpointer = Checkpointer(trainer.model, str(run.output_dir), meta=meta, trainer=trainer)
    trainer.checkpointer = checkpointer
    best = BestModel(checkpointer, plan.best_metric)
    results: dict = {}

    def evaluate_and_keep() -> dict:
        iterations = min(trainer.iter + 1, trainer.max_iter)
        try:
            results.update(evaluate(trainer.eval_model))
        except UserError:
            if iterations < trainer.max_iter:  # after the last step there is a model_final.pth
                checkpointer.save_iteration(trainer.iter)
            raise
        best.update(results, trainer.eval_model, iterations)
        return results

    evaluation = [EvalHook(plan.eval_period, evaluate_and_keep)] if evaluate else []
    clock = Clock(run.settings.max_minutes, plan.schedule) if plan.by_the_clock else None
    trainer.register_hooks(standard_hooks(run, plan, checkpointer, clock, [*hooks, *evaluation]))

    start_iter = checkpointer.resume(plan.max_iter) if run.resume else 0
    max_iter = start_iter if clock is not None and clock.is_over else plan.max_iter
    if start_iter == max_iter:
        logger.info("This run is finished, after %d iterations", start_iter)
        trainer.max_iter = max_iter
        if evaluate:  # the run may have been killed during its last evaluation
            evaluate_and_keep()
        return Fitted(trainer.eval_model, results, max_iter, trained=False)
    trainer.data_loader = make_loader(
        start_iter=start_iter, accumulation_steps=run.accumulation_steps
    )
    if not run.resume:
        delete_old_run(run.settings)
    save_config()
    trainer.train(start_iter, max_iter)
    return Fitted(trainer.eval_model, results, trainer.max_iter, trained=True)
