"""Runs an ablation, a grid of cells and seeds: what `tools/ablate.py` does.

A run that is done has a ``result.json`` in its folder. One that has begun has its settings in
``run.json``, and is continued by the same command.
"""

import argparse
import datetime
import gc
import json
import time
from pathlib import Path

import torch
from cells import Run, in_cell, read_cells
from detectron2.utils import comm
from table import write_table

import lomar_det
from lomar_det.checkpoint.serialization import save_atomically
from lomar_det.config.lazy import load_config
from lomar_det.engine import pick_device
from lomar_det.engine.device import describe_machine
from lomar_det.engine.writers import read_metrics, without_nan
from lomar_det.errors import UserError


def main(args: argparse.Namespace) -> dict[str, dict[int, dict]]:
    """Runs what is not done yet; writes table and plot at the start and after each cell.

    Returns:
        What `run_once` gives for the run downstream, by cell and seed.

    Raises:
        UserError: anything the user can mend; of a run, with the name of its cell.
    """
    cfg = load_config(args.config_file, args.opts)
    cells = read_cells(cfg)
    results, todo = {cell.name: {} for cell in cells}, []
    for seed in cfg.run.seeds:
        for cell in cells:
            run = cell.run.with_seed(seed)
            with in_cell(cell.name):
                result = read_result(run)
            if result is None:
                todo.append((cell.name, seed, run))
            else:
                results[cell.name][seed] = result
    write_table(cells, results, cfg)
    start = time.perf_counter()
    for number, (name, seed, run) in enumerate(todo, 1):
        _say(f"=== {number} of {len(todo)}: {name}, seed {seed}")
        with in_cell(name):
            results[name][seed] = run_once(run)
        write_table(cells, results, cfg)
        left = (time.perf_counter() - start) / number * (len(todo) - number) / 60
        _say(f"=== {name}, seed {seed}: done; about {left:.0f} min left")
    return results


def run_once(run: Run) -> dict:
    """Starts or continues a run unless it is done; returns its ``result.json``."""
    if result := read_result(run):
        return result
    pretraining = run.pretraining and run_once(run.pretraining)
    _say(f"--- {run.folder}")
    if comm.is_main_process():
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{run.folder} cannot be written: {error}") from None
        save_atomically(run.describe(), run.folder / "run.json")
    returned = run.start()
    gc.collect()  # the next run gets the memory
    torch.cuda.empty_cache()
    result = {"pretraining": pretraining, **_measure_cost(run)}
    if isinstance(returned, dict):
        result["results"] = without_nan(returned)
    if comm.is_main_process():
        save_atomically(result, run.folder / "result.json")
    return comm.all_gather(result)[0]  # the main process alone has a detector's results


def read_result(run: Run) -> dict | None:
    """What a run gave; None if it is not done.

    Raises:
        UserError: the run, or its pretraining, has begun with other settings.
    """
    if run.pretraining:
        read_result(run.pretraining)
    begun, result = _read(run.folder / "run.json"), _read(run.folder / "result.json")
    if (result or any(run.folder.glob("*.pth"))) and begun != run.describe():
        raise UserError(
            f"{run.folder} was run with other settings, those in its run.json: go back to them, "
            "choose another run.output_dir, or delete that folder to run it again"
        )
    return result


def _read(path: Path) -> dict | None:
    content = json.loads(path.read_text()) if path.is_file() else None
    return comm.all_gather(content)[0]  # all processes decide alike


def _measure_cost(run: Run) -> dict:
    """Images and seconds of the training steps, also of a run that was stopped; where and when."""
    train, lines = run.load().train, read_metrics(run.folder / "metrics.json")
    machine = describe_machine(pick_device(train.device))
    steps = lines[-1]["iteration"] + 1 if lines else 0
    times = [line["time"] for line in lines if "time" in line]
    return {
        "images": steps * train.get("total_batch_size", 0),
        "seconds": steps * sum(times) / max(len(times), 1),
        "machine": f"{machine}, lomar_det {lomar_det.__version__}",
        "date": datetime.date.today().isoformat(),
    }


def _say(text: str) -> None:
    if comm.is_main_process():
        print(text, flush=True)
