"""What every run does before its work: output folder, loggers, device."""

import io
import logging
import shlex
import sys
from pathlib import Path

import torch
from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from ..errors import UserError, as_user_error
from .device import describe_machine, pick_device, resolve_precision

logger = logging.getLogger(__name__)


_LOGGERS = {"detectron2": "d2", "fvcore": "fvcore", "lomar_det": "lomar", "lomar_pretrain": "lomar"}


def setup_run(cfg: DictConfig) -> torch.device:
    """Output folder, loggers (terminal and ``log.txt``), device; what the run is, in the log.

    detectron2's ``default_setup`` prints some hundred lines; these are the ones people look for.

    Raises:
        UserError: the output folder cannot be written, or the device is not there, or cannot
            compute in the precision asked for.
    """
    if not cfg.train.output_dir:
        raise UserError("train.output_dir is empty: name a folder")
    output_dir = Path(cfg.train.output_dir).expanduser()  # no shell does it behind a "="
    cfg.train.output_dir = str(output_dir)
    if comm.is_main_process():
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            (output_dir / "log.txt").touch()
        except OSError as error:
            raise UserError(
                f"train.output_dir={output_dir} cannot be written: {error}; choose another folder"
            ) from None
    comm.synchronize()
    for name, abbreviation in _LOGGERS.items():
        _close_handlers(logging.getLogger(name))  # of an earlier run in this process
        log = setup_logger(str(output_dir), comm.get_rank(), name=name, abbrev_name=abbreviation)
        for handler in log.handlers:
            if isinstance(handler.stream, io.TextIOWrapper):  # file names may be of other encodings
                handler.stream.reconfigure(errors="backslashreplace")
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_our_defect)
    device = pick_device(cfg.train.device)
    resolve_precision(cfg.train.precision, device)  # refuses what the device cannot do
    cfg.train.device = str(device)
    logger.info("Command: %s", shlex.join(sys.argv))
    logger.info("%s", describe_machine(device))
    logger.info("Output: %s", output_dir)
    return device


def save_config(cfg: DictConfig, name: str = "config.yaml") -> None:
    """The full config in the output folder; called once everything in it is known to be right."""
    if comm.is_main_process():
        LazyConfig.save(cfg, str(Path(cfg.train.output_dir, name)))


def _is_our_defect(record: logging.LogRecord) -> bool:
    """Log filter: the trainer logs a traceback of every error, also of what a user can mend."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or as_user_error(error) is None


def _close_handlers(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    setup_logger.cache_clear()  # it would otherwise remember that they are there
