"""How long a run is, and its learning rate: compositions of fvcore's schedules."""

import logging
import math
from typing import NamedTuple

from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from omegaconf import DictConfig

from ..errors import UserError

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """Length of a run that is measured in epochs, and its highest learning rate."""

    iters_per_epoch: int
    max_iter: int
    lr: float
    schedule: ParamScheduler

    def period(self, epochs: float | None) -> int | None:
        """Iterations between what happens every so many epochs; None stays None."""
        return max(1, round(epochs * self.iters_per_epoch)) if epochs else None


def check_warmup(settings: DictConfig) -> None:
    """Refuses a warm-up that is longer than the run."""
    if settings.warmup_epochs >= settings.epochs:
        raise UserError(
            f"train.warmup_epochs={settings.warmup_epochs} does not fit into "
            f"train.epochs={settings.epochs}: it must be less than that"
        )


def plan_epochs(settings: DictConfig, num_images: int) -> Plan:
    """Iterations and learning rate from epochs, batch and number of images; the log shows how."""
    batch = settings.total_batch_size
    iters_per_epoch = max(1, num_images // batch)
    max_iter = math.ceil(settings.epochs * iters_per_epoch)
    lr = settings.base_lr * batch / 256
    logger.info(
        "%d images; %g epochs x %d iterations of batch %d = %d iterations; "
        "learning rate %g * %d / 256 = %g",
        num_images,
        settings.epochs,
        iters_per_epoch,
        batch,
        max_iter,
        settings.base_lr,
        batch,
        lr,
    )
    schedule = warmup_cosine_schedule(settings.warmup_epochs / settings.epochs)
    return Plan(iters_per_epoch, max_iter, lr, schedule)


def warmup_cosine_schedule(warmup: float) -> ParamScheduler:
    """Linear from 0 to 1 over the share ``warmup`` of the run, then half a cosine to 0."""
    if not 0 <= warmup < 1:
        raise ValueError(f"the warm-up must be a share of the run in [0, 1), got {warmup}")
    cosine = CosineParamScheduler(1.0, 0.0)
    if not warmup:
        return cosine
    return CompositeParamScheduler(
        [LinearParamScheduler(0.0, 1.0), cosine],
        lengths=[warmup, 1 - warmup],
        interval_scaling=["rescaled", "rescaled"],
    )


def step_schedule(
    max_iter: int,
    warmup_iters: int = 250,
    milestones: tuple[float, ...] = (8 / 9, 26 / 27),
    gamma: float = 0.1,
    warmup_factor: float = 0.001,
) -> ParamScheduler:
    """ViTDet's schedule: warm-up, then a decay by ``gamma`` at each milestone.

    Args:
        max_iter: Length of the run.
        warmup_iters: Linear warm-up; shortened to a tenth of a run that is shorter than ten times.
        milestones: As shares of the run.
    """
    # In fine units of the whole run: fvcore refuses milestones of a run of few iterations.
    units = 10**9
    steps = [round(milestone * units) for milestone in milestones]
    values = [gamma**i for i in range(len(steps) + 1)]
    schedule = MultiStepParamScheduler(values, milestones=steps, num_updates=units)
    warmup = min(warmup_iters, max_iter // 10) / max_iter
    return WarmupParamScheduler(schedule, warmup_factor, warmup) if warmup else schedule
