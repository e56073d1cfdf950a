"""Learning rate schedules, as compositions of fvcore's."""

from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)


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
