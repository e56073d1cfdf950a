"""Where a run computes, and in which numeric precision."""

import contextlib
import os
import platform

import torch
from detectron2.utils import comm

from ..config.settings import RunSettings
from ..errors import UserError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto``, ``bf16``, ``fp16`` or ``fp32`` as a dtype.

    ``auto`` is bf16 on a GPU that has it and fp32 elsewhere: fp16 pretraining diverges late.

    Raises:
        UserError: unknown name, or fp16 on a CPU.
    """
    if name == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    if name not in _DTYPES:
        raise UserError(f"train.precision={name!r} is not one of auto, {', '.join(_DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise UserError("train.precision=fp16 needs a GPU; use bf16 or fp32 on a CPU")
    return _DTYPES[name]


def autocast(device: torch.device, dtype: torch.dtype):
    """Autocast to ``dtype``; for fp32, a context that does nothing."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def autocast_as_set(settings: RunSettings):
    """Autocast as ``device`` and ``precision`` of a ``train`` section ask for."""
    device = pick_device(settings.device)
    return autocast(device, resolve_precision(settings.precision, device))


def pick_device(name: str = "auto", setting: str = "train.device") -> torch.device:
    """The device of a name; ``auto`` is this process's GPU if there is one, else the CPU.

    Args:
        name: ``auto``, ``cuda``, ``cuda:1`` or ``cpu``.
        setting: Setting or option that holds the name, for the message.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    given = f"{setting} {name}" if setting.startswith("-") else f"{setting}={name}"
    if device is None or device.type not in ("cuda", "cpu"):
        raise UserError(f"{given} is not one of auto, cuda, cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{given}, but torch sees no GPU; use cpu")
    return device


def describe_machine(device: torch.device) -> str:
    """What a measurement depends on: versions of Python and torch, GPUs in use, CPU cores."""
    hardware = f"{os.cpu_count()} CPU cores"
    if device.type == "cuda":
        hardware = f"{comm.get_world_size()} x {torch.cuda.get_device_name(device)}, {hardware}"
    return f"Python {platform.python_version()}, torch {torch.__version__}, {hardware}"
