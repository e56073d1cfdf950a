"""One word for the numeric precision of a run."""

import contextlib

import torch
from omegaconf import DictConfig

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


def autocast_as_set(settings: DictConfig):
    """Autocast to what ``device`` and ``precision`` of a config's ``train`` section say."""
    device = torch.device(settings.device)
    return autocast(device, resolve_precision(settings.precision, device))
