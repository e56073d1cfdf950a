"""What both stages add to detectron2's trainer."""

from ..compat import require_detectron2

require_detectron2()

from .checkpointer import Checkpointer, load_plain, save_atomically
from .hooks import StopOnSignal, standard_hooks
from .launch import (
    add_config_arguments,
    add_run_arguments,
    pick_device,
    run_tool,
    save_config,
    setup_run,
)
from .precision import autocast, resolve_precision
from .schedules import step_schedule, warmup_cosine_schedule
from .trainer import Trainer, wrap_ddp

__all__ = [
    "Checkpointer",
    "StopOnSignal",
    "Trainer",
    "add_config_arguments",
    "add_run_arguments",
    "autocast",
    "load_plain",
    "pick_device",
    "resolve_precision",
    "run_tool",
    "save_atomically",
    "save_config",
    "setup_run",
    "standard_hooks",
    "step_schedule",
    "warmup_cosine_schedule",
    "wrap_ddp",
]
