"""The engine of every run: `fit` and its parts, on top of detectron2's trainer."""

from ..compat import require_detectron2

require_detectron2()

from ..checkpoint.serialization import load_plain, save_atomically
from .checkpointer import BestModel, Checkpointer, check_output_dir, delete_old_run
from .device import autocast, autocast_as_set, pick_device, resolve_precision
from .fit import Fitted, fit
from .hooks import Clock, StopOnDivergence, StopOnSignal, standard_hooks
from .launch import add_config_arguments, add_run_arguments, run_tool
from .schedules import Plan, check_warmup, plan_epochs, step_schedule, warmup_cosine_schedule
from .setup import Run, save_config, setup_run
from .trainer import Trainer, build_trainer, wrap_ddp

hooks_by_epochs = standard_hooks  # the old name, from when runs by iterations had others

__all__ = [
    "BestModel",
    "Clock",
    "Checkpointer",
    "Fitted",
    "Plan",
    "Run",
    "StopOnDivergence",
    "StopOnSignal",
    "Trainer",
    "add_config_arguments",
    "add_run_arguments",
    "autocast",
    "autocast_as_set",
    "build_trainer",
    "check_output_dir",
    "check_warmup",
    "delete_old_run",
    "fit",
    "hooks_by_epochs",
    "load_plain",
    "pick_device",
    "plan_epochs",
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
