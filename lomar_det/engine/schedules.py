"""The length of a run and its learning rate schedule, composed of fvcore's schedules."""

import logging
import math
from dataclasses import dataclass

from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)

from ..config.settings import DetectionSettings, EpochSettings
from ..errors import UserError

logger = logging.getLogger(__name__)

# Stands for the length of a run that ``train.max_minutes`` ends; `Clock` finds the last iteration.
BY_THE_CLOCK = 10**12


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a run is and what happens when, in iterations.

    Attributes:
        max_iter: The length, or `BY_THE_CLOCK`.
        schedule: Factor of the learning rates over the share of the run.
        checkpoint_period, milestone_period, eval_period: Iterations between them; None or 0: never.
        max_to_keep: Checkpoints that stay, besides milestones and the last one; None: all.
        best_metric: The metric that chooses the weights to keep; None: none are kept.
        iters_per_epoch: Iterations of one pass over the images.
    """

    max_iter: int
    schedule: ParamScheduler
    checkpoint_period: int
    max_to_keep: int | None
    milestone_period: int | None = None
    eval_period: int = 0
    best_metric: str | None = None
    iters_per_epoch: int = 1

    @property
    def by_the_clock(self) -> bool:
        """Whether ``train.max_minutes`` ends the run."""
        return self.max_iter == BY_THE_CLOCK


def check_warmup(settings: EpochSettings) -> None:
    """Refuses a warm-up that is not shorter than the run."""
    if settings.warmup_epochs >= settings.epochs:
        raise UserError(
            f"train.warmup_epochs={settings.warmup_epochs} must be less than "
            f"train.epochs={settings.epochs}"
        )


def plan_epochs(
    settings: EpochSettings,
    num_images: int,
    eval_epochs: float = 0,
    best_metric: str | None = None,
) -> tuple[Plan, float]:
    """Computes iterations and learning rate from epochs, batch and number of images; logs both.

    With ``train.max_minutes``, ``train.epochs`` only decides the share of the warm-up.

    Returns:
        The plan, and the peak learning rate.
    """
    batch = settings.total_batch_size
    iters_per_epoch = max(1, num_images // batch)
    max_iter = math.ceil(settings.epochs * iters_per_epoch)
    lr = settings.base_lr * batch / 256
    length = f"{settings.epochs:g} epochs x {iters_per_epoch} iterations of batch {batch} = "
    length += f"{max_iter} iterations"
    if settings.max_minutes is not None:
        max_iter = BY_THE_CLOCK
        length = f"{settings.max_minutes:g} minutes, {iters_per_epoch} iterations an epoch"
    rate = f"learning rate {settings.base_lr:g} * {batch} / 256 = {lr:g}"
    logger.info("%d images; %s; %s", num_images, length, rate)

    def period(epochs: float | None) -> int | None:
        return max(1, round(epochs * iters_per_epoch)) if epochs else None

    plan = Plan(
        max_iter=max_iter,
        schedule=warmup_cosine_schedule(settings.warmup_epochs / settings.epochs),
        checkpoint_period=period(settings.checkpoint_epochs),
        max_to_keep=settings.max_to_keep,
        milestone_period=period(settings.milestone_epochs),
        eval_period=period(eval_epochs) or 0,
        best_metric=best_metric,
        iters_per_epoch=iters_per_epoch,
    )
    return plan, lr


def count_iterations(
    settings: DetectionSettings, batch: int, num_images: int | None, lr: float
) -> int | None:
    """Computes the iterations of a detector's run and logs how; None with ``train.max_minutes``.

    Raises:
        UserError: no setting gives the length of the run.
    """
    epochs, max_iter, usual = settings.epochs, settings.max_iter, settings.lr_batch_size
    if usual not in (None, batch):
        logger.warning(
            "optimizer.lr=%g is meant for batch %d, but this run has batch %d. Scaled linearly, it "
            "would be %g",
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
    iterations = math.ceil(epochs * num_images / batch)
    logger.info(
        "%g epochs x %d images / batch %d = %d iterations%s",
        epochs,
        num_images,
        batch,
        iterations,
        f"; train.min_iter={settings.min_iter} counts" if iterations < settings.min_iter else "",
    )
    return max(iterations, settings.min_iter)


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
    max_iter: int | None,
    warmup_iters: int = 250,
    milestones: tuple[float, ...] = (8 / 9, 26 / 27),
    gamma: float = 0.1,
    warmup_factor: float = 0.001,
) -> ParamScheduler:
    """ViTDet's schedule: warm-up, then a decay by ``gamma`` at each milestone.

    Args:
        max_iter: Length of the run; None where ``train.max_minutes`` decides it.
        warmup_iters: Iterations of linear warm-up, at most a tenth of the run. A run by the clock
            warms up for a tenth of its minutes, or not at all if this is 0.
        milestones: Shares of the run.
        gamma: Factor of the learning rate at each milestone.
        warmup_factor: Factor of the learning rate at the first iteration.
    """
    # Milestones in billionths of the run: fvcore refuses them in iterations if those are few.
    units = 10**9
    steps = [round(milestone * units) for milestone in milestones]
    values = [gamma**i for i in range(len(steps) + 1)]
    schedule = MultiStepParamScheduler(values, milestones=steps, num_updates=units)
    if max_iter is None:
        warmup = 0.1 if warmup_iters else 0
    else:
        warmup = min(warmup_iters, max_iter // 10) / max_iter
    return WarmupParamScheduler(schedule, warmup_factor, warmup) if warmup else schedule
