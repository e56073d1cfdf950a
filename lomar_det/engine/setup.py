"""What every run does before its work: output folder, loggers, device, split of the batch."""

import io
import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from ..config.lazy import thawed
from ..config.settings import RunSettings
from ..data.stream import count_accumulation_steps
from ..errors import UserError
from .checkpointer import check_output_dir
from .device import describe_machine, pick_device, resolve_precision

logger = logging.getLogger(__name__)

_LOGGERS = {"detectron2": "d2", "fvcore": "fvcore", "lomar_det": "lomar", "lomar_pretrain": "lomar"}


@dataclass(frozen=True)
class Run:
    """A run whose output folder, log and device are set up.

    Attributes:
        settings: The ``train`` section of its config.
        device, dtype: Where and how it computes.
        total_batch_size: Images of a step over all processes; 0 if nothing is trained.
        accumulation_steps: Forward passes of a step.
        resume: The run continues the one in its output folder.
    """

    settings: RunSettings
    device: torch.device
    dtype: torch.dtype
    total_batch_size: int = 0
    accumulation_steps: int = 1
    resume: bool = False

    @property
    def output_dir(self) -> Path:
        """The folder ``train.output_dir``."""
        return Path(self.settings.output_dir)


def setup_run(settings: RunSettings, total_batch_size: int = 0, resume: bool = False) -> Run:
    """Sets up output folder, loggers (terminal and ``log.txt``), device and split of the batch.

    The log begins with command, machine and output folder. detectron2's ``default_setup`` would
    print some hundred lines.

    Args:
        settings: The ``train`` section.
        total_batch_size: Images per step; 0 if nothing is trained.
        resume: Continue the run in the output folder, if there is one.

    Raises:
        UserError: the output folder cannot be written or holds another run, the device is not there
            or cannot compute in the precision asked for, or the batch cannot be split.
    """
    if not settings.output_dir:
        raise UserError("train.output_dir is empty: name a folder")
    output_dir = Path(settings.output_dir)
    if comm.is_main_process():
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            (output_dir / "log.txt").touch()
        except OSError as error:
            raise UserError(
                f"train.output_dir={output_dir} cannot be written: {error}; choose another folder"
            ) from None
    comm.synchronize()
    _start_loggers(output_dir)
    device = pick_device(settings.device)
    dtype = resolve_precision(settings.precision, device)
    logger.info("Command: %s", shlex.join(sys.argv))
    logger.info("%s", describe_machine(device))
    logger.info("Output: %s", output_dir)
    if not total_batch_size:
        return Run(settings, device, dtype)
    found = check_output_dir(settings, resume)
    accumulation_steps = count_accumulation_steps(
        total_batch_size, settings.max_batch_per_gpu, settings.accumulation_steps
    )
    return Run(settings, device, dtype, total_batch_size, accumulation_steps, found)


def _start_loggers(output_dir: Path) -> None:
    for name, abbreviation in _LOGGERS.items():
        _close_handlers(logging.getLogger(name))  # of an earlier run in this process
        log = setup_logger(str(output_dir), comm.get_rank(), name=name, abbrev_name=abbreviation)
        for handler in log.handlers:
            if isinstance(handler.stream, io.TextIOWrapper):  # file names may have other encodings
                handler.stream.reconfigure(errors="backslashreplace")


def _close_handlers(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    setup_logger.cache_clear()  # it remembers loggers that have handlers


def save_config(cfg: DictConfig, output_dir: str | Path, name: str = "config.yaml") -> None:
    """Writes the full config into the output folder; called after all checks."""
    if comm.is_main_process():
        # LazyConfig.save assigns into a copy, which is frozen if the config is.
        LazyConfig.save(thawed(cfg), str(Path(output_dir, name)))
