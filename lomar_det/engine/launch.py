"""What all tools share: arguments, processes, devices, one-line errors."""

import argparse
import logging
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable

import torch
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from ..errors import UserError, as_user_error, user_message
from .hooks import StopOnSignal

logger = logging.getLogger(__name__)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """A config file and overrides, for tools that run in one process."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a config")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="override config settings")
    parser.set_defaults(num_gpus=1, num_machines=1)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """detectron2's usual options, for tools that train."""
    parser.epilog = (
        "exit codes: 0 done; 2 an error of the settings, the data or the disk, in one line; "
        "stopped by a signal, after writing a checkpoint for --resume: 143 SIGTERM, 138 SIGUSR1, "
        "129 SIGHUP, 130 Ctrl-C"
    )
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="for several machines: tcp://HOST:PORT")


def run_tool(main: Callable, args: argparse.Namespace) -> None:
    """Runs ``main(args)`` in one or several processes.

    Under torchrun (``RANK`` and ``WORLD_SIZE`` are set) this process is one of the group;
    otherwise ``--num-gpus`` processes are started. A `UserError` or a full disk gives one line and
    exit code 2. Ctrl-C gives exit code 130. `StopOnSignal` handles signals during training.
    """
    # Tools set SIG_DFL during their imports.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if "RANK" in os.environ and _variable("WORLD_SIZE", "1") > 1:
            _guarded(lambda args: (_join_torchrun(args), main(args)), args)
        elif args.num_gpus * args.num_machines > 1:
            _start_processes(main, args)
        else:
            _guarded(main, args)
    except UserError as error:
        sys.exit(report_error(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def report_error(error: UserError) -> int:
    """Prints a user's error as one line, or raises it if LOMAR_DEBUG is set; the exit code."""
    if os.environ.get("LOMAR_DEBUG"):
        raise error
    print(f"error: {user_message(error)}", file=sys.stderr)
    return 2


def _start_processes(main: Callable, args: argparse.Namespace) -> None:
    """Starts ``--num-gpus`` processes, on the CPU without GPUs; exits as the first that fails."""
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()} GPU(s)"
        )
    if not torch.cuda.is_available():
        print(f"no GPU here: {args.num_gpus} processes on the CPU", file=sys.stderr)
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UserError(
            "--num-machines needs --dist-url tcp://HOST:PORT, a free port of the machine of "
            "--machine-rank 0, the same on all machines"
        )

    def pass_on(number: int, _frame) -> None:
        for process in multiprocessing.active_children():
            if process.pid and number != signal.SIGINT:  # a terminal sends that to all by itself
                os.kill(process.pid, number)

    for number in StopOnSignal.signals():
        signal.signal(number, pass_on)
    processes = args.num_gpus, args.num_machines, args.machine_rank, args.dist_url
    try:
        launch(_in_child, *processes, (multiprocessing.get_start_method(), main, args))
    except torch.multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)


def _in_child(start_method: str, main: Callable, args: argparse.Namespace) -> None:
    """`_guarded` in a process that `launch` has spawned.

    Its loaders start their workers as those of a single process do: spawned workers would each
    import everything again, and a signal in the meantime would end them.
    """
    multiprocessing.set_start_method(start_method, force=True)
    _guarded(main, args)


def _guarded(main: Callable, args: argparse.Namespace) -> None:
    """Runs ``main`` with errors as one line; an error that all processes meet is printed once."""
    logging.raiseExceptions = False  # on a full disk, every log line would print a traceback
    try:
        main(args)
    except Exception as error:
        user_error = as_user_error(error)
        if user_error is None:
            raise
        rank = os.environ.get("RANK", "")
        if (int(rank) if rank.isdecimal() else comm.get_rank()) > 0:
            # If the main process meets the same error, it ends this process before it prints.
            time.sleep(5)
        sys.exit(report_error(user_error))


def _join_torchrun(args: argparse.Namespace) -> None:
    """Joins the group that torchrun, or a script that sets the same variables, describes."""
    environment = os.environ
    if args.num_gpus * args.num_machines > 1:
        raise UserError(
            f"torchrun has started {environment['WORLD_SIZE']} processes already (RANK and "
            "WORLD_SIZE are set): leave out --num-gpus and --num-machines, or torchrun"
        )
    needed = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if not environment.get(name)]
    if missing:
        raise UserError(
            f"RANK and WORLD_SIZE are set, but not {', '.join(missing)}: start with torchrun, or "
            "set all of them in every process"
        )
    rank, world_size = _variable("RANK"), _variable("WORLD_SIZE")
    local_rank, local_size = _variable("LOCAL_RANK"), world_size
    if "LOCAL_WORLD_SIZE" in environment:
        local_size = _variable("LOCAL_WORLD_SIZE")
    use_cuda, num_gpus = torch.cuda.is_available(), torch.cuda.device_count()
    problems = {
        f"RANK={rank} must be less than WORLD_SIZE={world_size}": rank >= world_size,
        f"LOCAL_WORLD_SIZE={local_size} must divide WORLD_SIZE={world_size}": (
            local_size < 1 or world_size % local_size > 0
        ),
        f"LOCAL_RANK={local_rank} must be less than the {local_size} processes of a machine": (
            local_rank >= local_size
        ),
        # Schedulers may show every process a single GPU of its own.
        f"LOCAL_RANK={local_rank}, but this machine has {num_gpus} GPUs": (
            1 < num_gpus <= local_rank
        ),
        "MASTER_PORT must be at most 65535": _variable("MASTER_PORT") > 65535,
    }
    for problem, there in problems.items():
        if there:
            raise UserError(f"{problem}: start with torchrun, or unset these variables")
    if use_cuda:
        torch.cuda.set_device(local_rank if num_gpus > 1 else 0)
    torch.distributed.init_process_group("nccl" if use_cuda else "gloo", timeout=DEFAULT_TIMEOUT)
    if "LOCAL_WORLD_SIZE" not in environment:
        hosts = [None] * comm.get_world_size()
        torch.distributed.all_gather_object(hosts, platform.node())
        local_size = hosts.count(platform.node())
    comm.create_local_process_group(local_size)


def _variable(name: str, default: str = "") -> int:
    """The number in an environment variable that torchrun sets."""
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise UserError(
            f"the environment variable {name}={text!r} must be a whole number of at least 0: start "
            "with torchrun, which sets it, or unset RANK and WORLD_SIZE"
        )
    return int(text)
