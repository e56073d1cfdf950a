"""What every tool does around its work: arguments, devices, processes, one-line errors."""

import argparse
import logging
import os
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import LazyConfig
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from ..errors import UserError, user_message

logger = logging.getLogger(__name__)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """detectron2's usual options, for tools that train."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a LazyConfig (.py)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="for several machines: tcp://HOST:PORT")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="key=value", help="override config settings"
    )


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is this process's GPU where there is one, else the CPU.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"train.device={name}, but torch sees no GPU; use train.device=cpu")
    return device


def setup_run(cfg: DictConfig) -> torch.device:
    """Output folder, loggers (terminal and ``log.txt``), device; what the run is, in the log.

    detectron2's ``default_setup`` prints some hundred lines; these are the ones people look for.

    Raises:
        UserError: the output folder cannot be written, or the device is not there.
    """
    output_dir = Path(cfg.train.output_dir)
    if comm.is_main_process():
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"train.output_dir={output_dir} cannot be created: {error}; choose another folder"
            ) from None
    comm.synchronize()
    for name, abbreviation in _LOGGERS.items():
        _close_handlers(logging.getLogger(name))  # of an earlier run in this process
        setup_logger(str(output_dir), comm.get_rank(), name=name, abbrev_name=abbreviation)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_our_defect)
    device = pick_device(cfg.train.device)
    cfg.train.device = str(device)
    hardware = f"{os.cpu_count()} CPU cores"
    if device.type == "cuda":
        hardware = f"{comm.get_world_size()} x {torch.cuda.get_device_name(device)}, {hardware}"
    logger.info("Command: %s", shlex.join(sys.argv))
    logger.info("Python %s, torch %s, %s", platform.python_version(), torch.__version__, hardware)
    if comm.is_main_process():
        LazyConfig.save(cfg, str(output_dir / "config.yaml"))
        logger.info("Output and full config: %s", output_dir)
    return device


_LOGGERS = {"detectron2": "d2", "fvcore": "fvcore", "lomar_det": "lomar", "lomar_pretrain": "lomar"}


def _is_our_defect(record: logging.LogRecord) -> bool:
    """Log filter: the trainer logs a traceback of every error, also of what a user can mend."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, UserError | FloatingPointError)


def _close_handlers(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    setup_logger.cache_clear()  # it would otherwise remember that they are there


def run_tool(main: Callable, args: argparse.Namespace) -> None:
    """Runs ``main(args)`` in one or several processes.

    Under torchrun (``RANK`` and ``WORLD_SIZE`` are set) this process is one of the group;
    otherwise ``--num-gpus`` processes are started. A `UserError` becomes one line and exit code 2,
    Ctrl-C exit code 130.
    """
    try:
        if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _join_torchrun()
            main(args)
        elif args.num_gpus * args.num_machines > 1:
            url = args.dist_url
            launch(_guarded, args.num_gpus, args.num_machines, args.machine_rank, url, (main, args))
        else:
            main(args)
    except UserError as error:
        sys.exit(report_error(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def report_error(error: UserError) -> int:
    """Prints a user's error as one line; set LOMAR_DEBUG=1 to see where it came from."""
    if os.environ.get("LOMAR_DEBUG"):
        raise error
    print(f"error: {user_message(error)}", file=sys.stderr)
    return 2


def _guarded(main: Callable, args: argparse.Namespace) -> None:
    """In a started process: all of them meet the same user error, one of them prints it."""
    try:
        main(args)
    except UserError as error:
        if comm.is_main_process():
            report_error(error)
        sys.exit(2)


def _join_torchrun() -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    use_cuda = torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if use_cuda else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
