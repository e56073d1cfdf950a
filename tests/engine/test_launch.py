"""How runs are started: torchrun's variables, conflicts, exit codes, Ctrl-C."""

import argparse
import errno
import importlib
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from detectron2.utils import comm
from helpers.common import ROOT, free_port, tool_environment

from lomar_det.config.settings import RunSettings
from lomar_det.engine import add_run_arguments, run_tool, setup_run
from lomar_det.errors import UserError


def arguments(*given):
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    return parser.parse_args(["--config-file", "x.py", *given])


def group_environment(port, **changes):
    variables = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | changes
    return {name: str(value) for name, value in variables.items() if value is not None}


def run_and_exit(main, args, environment, results):
    os.environ.update(environment)
    torch.set_num_threads(1)
    run_tool(lambda args: results.put(main()), args)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs as many GPUs as processes")
@pytest.mark.parametrize("local_world_size", [2, None])
def test_two_processes_of_torchrun_find_each_other(local_world_size):
    """Without LOCAL_WORLD_SIZE: a cluster's script that sets the variables by hand."""

    def main():
        return comm.get_rank(), comm.get_local_rank(), comm.get_local_size(), comm.all_gather(7)

    context, port = multiprocessing.get_context("fork"), free_port()
    results, group = context.Queue(), []
    for rank in range(2):
        changes = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": local_world_size}
        given = main, arguments(), group_environment(port, **changes), results
        group.append(context.Process(target=run_and_exit, args=given))
        group[-1].start()
    seen = sorted(results.get(timeout=60) for _ in range(2))
    for process in group:
        process.join()
    assert seen == [(0, 0, 2, [7, 7]), (1, 1, 2, [7, 7])]
    assert [process.exitcode for process in group] == [0, 0]


@pytest.mark.parametrize(
    "given, changes, words",
    [
        (["--num-gpus", "2"], {}, ["torchrun", "--num-gpus"]),
        ([], {"LOCAL_RANK": None, "MASTER_PORT": ""}, ["LOCAL_RANK", "MASTER_PORT"]),
        ([], {"RANK": "x"}, ["RANK='x'", "torchrun"]),
        ([], {"WORLD_SIZE": -1}, ["WORLD_SIZE='-1'"]),
        ([], {"LOCAL_WORLD_SIZE": "2.0"}, ["LOCAL_WORLD_SIZE='2.0'"]),
        ([], {"RANK": 2}, ["RANK=2", "WORLD_SIZE=2"]),
        ([], {"LOCAL_RANK": 2}, ["LOCAL_RANK=2"]),
        ([], {"LOCAL_WORLD_SIZE": 0}, ["LOCAL_WORLD_SIZE=0", "WORLD_SIZE=2"]),
        ([], {"LOCAL_WORLD_SIZE": 3}, ["LOCAL_WORLD_SIZE=3", "WORLD_SIZE=2"]),
        ([], {"MASTER_PORT": 99999}, ["MASTER_PORT", "65535"]),
    ],
)
def test_what_contradicts_torchrun_is_one_clear_error(monkeypatch, capsys, given, changes, words):
    monkeypatch.setattr("lomar_det.engine.launch.time.sleep", lambda seconds: None)
    for name, value in group_environment(1, **changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        run_tool(lambda args: None, arguments(*given))
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ")
    assert all(word in line for word in words), line


def buried(cause):
    """As torch.save has it: an error of its zip writer, raised while it handles the cause."""
    error = RuntimeError("unexpected pos 64 vs 0")
    error.__context__ = cause
    return error


def test_several_machines_must_be_told_where_to_meet(capsys):
    with pytest.raises(SystemExit) as stop:
        run_tool(lambda args: None, arguments("--num-machines", "2"))
    assert stop.value.code == 2 and "--dist-url" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, code, words",
    [
        (UserError("train.seed=x"), 2, "error: train.seed=x"),
        (OSError(errno.ENOSPC, "FULL"), 2, "error: .*FULL.*--resume"),
        (buried(OSError(errno.EFBIG, "FULL")), 2, "error: .*FULL.*--resume"),
        (RuntimeError("DataLoader worker (pid 7) KILLED"), 2, "error: .*KILLED.*num_workers"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(capsys, error, code, words):
    def main(args):
        raise error

    with pytest.raises(SystemExit) as stop:
        run_tool(main, arguments())
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == code and re.match(words, line)


def test_the_log_of_a_run(tmp_path, monkeypatch):
    """In ~, and with file names that are not UTF-8: no line may be lost."""
    monkeypatch.setenv("HOME", str(tmp_path))
    run = setup_run(RunSettings(output_dir="~/a run", device="cpu"))
    assert run.output_dir == tmp_path / "a run"
    logging.getLogger("lomar_det").warning("cannot read %s", os.fsdecode(b"\xe9.png"))
    assert "cannot read \\udce9.png" in (tmp_path / "a run" / "log.txt").read_text()


def test_other_errors_keep_their_traceback():
    def main(args):
        raise FileNotFoundError("a defect of ours")

    with pytest.raises(FileNotFoundError):
        run_tool(main, arguments())


def test_exit_codes_are_in_the_help():
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    text = parser.format_help()
    assert all(f"{128 + number}" in text for number in (2, 10, 15)) and "--resume" in text


@pytest.mark.parametrize("tool", ["pretrain", "train_net"])
def test_ctrl_c_during_the_imports_leaves_no_traceback(tool):
    process = subprocess.Popen(
        [sys.executable, "-v", f"tools/{tool}.py", "--help"],
        cwd=ROOT,
        env=tool_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    seen = b""
    while b"import 'torch" not in seen[-200:]:  # -v names each import as it is done
        line = process.stderr.readline()
        assert line, seen
        seen += line
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGINT and b"Traceback" not in seen + err


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL])
def test_several_processes_under_nohup_inherit_that_it_is_ignored(monkeypatch, before):
    """A process that is started gets the default back for whatever has a handler here."""
    seen = []
    module = importlib.import_module("lomar_det.engine.launch")
    monkeypatch.setattr(module, "launch", lambda *_: seen.append(signal.getsignal(signal.SIGHUP)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGHUP, before)
    try:
        run_tool(None, arguments("--num-gpus", "2"))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (seen == [signal.SIG_IGN]) == (before == signal.SIG_IGN) and len(seen) == 1
