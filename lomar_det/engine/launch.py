"""What every tool does around its work: arguments, devices, processes, one-line errors."""

import argparse
import logging
import multiprocessing
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import LazyConfig
from detectron2.engine import launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

from ..errors import UserError, user_message
from .hooks import StopOnSignal

logger = logging.getLogger(__name__)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """A config file and overrides, for tools that run in one process."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a LazyConfig (.py)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="override config settings")
    parser.set_defaults(num_gpus=1, num_machines=1)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """detectron2's usual options, for tools that train."""
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="for several machines: tcp://HOST:PORT")


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is this process's GPU where there is one, else the CPU.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"train.device={name} is not one of auto, cuda, cpu") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"train.device={name}, but torch sees no GPU; use train.device=cpu")
    return device


def setup_run(cfg: DictConfig) -> torch.device:
    """Output folder, loggers (terminal and ``log.txt``), device; what the run is, in the log.

    detectron2's ``default_setup`` prints some hundred lines; these are the ones people look for.

    Raises:
        UserError: the output folder cannot be written, or the device is not there.
    """
    if not cfg.train.output_dir:
        raise UserError("train.output_dir is empty: name a folder")
    if not isinstance(cfg.train.seed, int) or cfg.train.seed < 0:
        raise UserError(f"train.seed={cfg.train.seed} must be a whole number, at least 0")
    output_dir = Path(cfg.train.output_dir)
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
        setup_logger(str(output_dir), comm.get_rank(), name=name, abbrev_name=abbreviation)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_our_defect)
    device = pick_device(cfg.train.device)
    cfg.train.device = str(device)
    hardware = f"{os.cpu_count()} CPU cores"
    if device.type == "cuda":
        hardware = f"{comm.get_world_size()} x {torch.cuda.get_device_name(device)}, {hardware}"
    logger.info("Command: %s", shlex.join(sys.argv))
    logger.info("Python %s, torch %s, %s", platform.python_version(), torch.__version__, hardware)
    logger.info("Output: %s", output_dir)
    return device


def save_config(cfg: DictConfig, name: str = "config.yaml") -> None:
    """The full config in the output folder; called once everything in it is known to be right."""
    if comm.is_main_process():
        LazyConfig.save(cfg, str(Path(cfg.train.output_dir, name)))


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
            _guarded(main, args)
        elif args.num_gpus * args.num_machines > 1:
            _start_processes(main, args)
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


def _start_processes(main: Callable, args: argparse.Namespace) -> None:
    """One process per GPU (or, without any, on the CPU); ends with the exit code of the first."""
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()}"
        )

    def pass_on(number: int, _frame) -> None:
        for process in multiprocessing.active_children():
            if process.pid and number != signal.SIGINT:  # a terminal sends that to all by itself
                os.kill(process.pid, number)

    for number in StopOnSignal.signals:
        signal.signal(number, pass_on)
    processes = args.num_gpus, args.num_machines, args.machine_rank, args.dist_url
    try:
        launch(_guarded, *processes, (main, args))
    except torch.multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)


def _guarded(main: Callable, args: argparse.Namespace) -> None:
    """In one of several processes: a user error that all of them meet is printed once."""
    try:
        main(args)
    except UserError as error:
        if not comm.is_main_process():
            time.sleep(5)  # if the main process met it too, all are ended before this one prints
        sys.exit(report_error(error))


def _join_torchrun() -> None:
    local_rank = int(os.environ["LOCAL_RANK"])
    use_cuda = torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if use_cuda else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
