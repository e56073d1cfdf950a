"""The smallest trainings there are: a linear layer by `Trainer`, and by `fit`, in milliseconds."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lomar_det.config.settings import RunSettings
from lomar_det.engine import Fitted, Plan, Run, Trainer, fit, warmup_cosine_schedule

SCHEDULE = warmup_cosine_schedule(0.25)


def linear_model() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same weights each time."""
    torch.manual_seed(1)
    model = nn.Linear(3, 1)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def squares(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"loss": model(x).square().mean()}


def linear_trainer(batches: Iterable, **settings: Any) -> Trainer:
    model, optimizer = linear_model()
    return Trainer(model, iter(batches), optimizer, squares, **settings)


def endless_batches(start_iter: int, accumulation_steps: int) -> Iterator[Tensor]:
    """Batch i is the same wherever a run starts, as of the real loaders."""
    for i in itertools.count(start_iter * accumulation_steps):
        yield torch.randn(4, 3, generator=torch.Generator().manual_seed(i))


def dropped_squares(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A loss that draws from the global generator, as proposals and stochastic depth do."""
    return squares(model, F.dropout(x, 0.5))


def fit_linear(
    folder: Path,
    *,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    **options: Any,
) -> Fitted:
    """A run of six iterations by `fit`, its `Run` and `Plan` built by hand.

    Args:
        folder: The output folder.
        resume: Continue the run there.
        settings, plan: Of `RunSettings` and of `Plan`, where they are not the usual ones.
        options: Of `fit`.
    """
    folder.mkdir(exist_ok=True)
    settings = {"output_dir": str(folder), "ema_decay": 0.9, "log_period": 1} | (settings or {})
    run = Run(RunSettings(**settings), torch.device("cpu"), torch.float32, 4, resume=resume)
    usual = dict(max_iter=6, schedule=SCHEDULE)
    usual |= dict(checkpoint_period=100, max_to_keep=None, best_metric="task/score")
    options = {
        "make_loader": endless_batches,
        "save_config": lambda: None,
        "compute_losses": dropped_squares,
    } | options
    return fit(run, Plan(**(usual | (plan or {}))), *linear_model(), **options)
