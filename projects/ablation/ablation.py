"""Ablations, a grid of pretraining runs and what each is worth: what `tools/ablate.py` runs.

A cell is a way to pretrain, or none, and the run downstream that measures it. Every cell and seed
has a folder with its two runs, each with a ``run.json``, and a ``cell.json`` once both are done:
all that a restarted command needs to know. They hold all results of a run, from which the metrics
that are asked for are taken when the table is written.
"""

import argparse
import datetime
import gc
import math
import time
from pathlib import Path
from typing import Any

import torch
from ablation_checks import in_cell
from ablation_plan import Cell, Run, plan_cells
from ablation_records import (
    alone_in,
    make_lock,
    read_begun,
    read_record,
    refuse_changes,
    write_record,
)
from ablation_table import format_number, write_table
from detectron2.utils import comm
from omegaconf import DictConfig

import lomar_det
from lomar_det.config.lazy import load_config
from lomar_det.engine import pick_device
from lomar_det.engine.device import describe_machine
from lomar_det.engine.writers import read_metrics
from lomar_det.errors import UserError


def main(args: argparse.Namespace) -> list[dict]:
    """Runs what is not done yet, and writes table and plot anew first and after each cell.

    Returns:
        The contents of all ``cell.json`` files, seed by seed.

    Raises:
        UserError: anything the user can mend; of a run, with the name of its cell.
    """
    try:
        return _run_cells(load_config(args.config_file, args.opts))
    except SystemExit:
        _say("Stopped by a signal: the same command continues here")
        raise


def _run_cells(cfg: DictConfig) -> list[dict]:
    cells = plan_cells(cfg)
    output = Path(cfg.run.output_dir)
    jobs = [(cell, seed) for seed in cfg.run.seeds for cell in cells]
    for check in (_refuse_changes, _refuse_folders):
        for cell, seed in jobs:  # all of them, before hours are spent on the first
            with in_cell(cell.name):
                check(cell, seed, output)
    records = [read_record(_folder(output, cell.name, seed) / "cell.json") for cell, seed in jobs]
    comm.synchronize()  # all processes have read them
    _report(cells, records, cfg, output)  # of other metrics or titles than before, say
    seconds: list[float] = []
    for number, (cell, seed) in enumerate(jobs):
        if records[number] is not None:
            continue
        title = f"=== {number + 1}/{len(jobs)} {cell.name}, seed {seed}"
        _say(title)
        start = time.perf_counter()
        with in_cell(cell.name):
            _refuse_changes(cell, seed, output)  # another command may have made it meanwhile
            record = records[number] = _run_cell(cell, seed, output)
        seconds.append(time.perf_counter() - start)
        left = records.count(None) * sum(seconds) / len(seconds) / 60
        value = f"{record['metric']} {format_number(record['value'])}"
        _say(f"{title}: {value}; about {left:.0f} min left")
        _report(cells, records, cfg, output)
    if comm.is_main_process():
        print((output / "table.md").read_text("utf-8"))
    return records


def _report(cells: list[Cell], records: list[dict | None], cfg: DictConfig, output: Path) -> None:
    """Table and plot of what is done; refuses metrics that it does not have."""
    done = [record for record in records if record is not None]
    by_name = {cell.name: cell for cell in cells}
    for record in done:
        with in_cell(record["cell"]):
            by_name[record["cell"]].measured(record)
    if done and comm.is_main_process():
        try:
            write_table(cells, done, cfg, output)
        except OSError as error:
            raise UserError(
                f"the table in {output} cannot be written: {error}; with that mended, the same "
                "command writes it from the runs that are done"
            ) from None


def _run_cell(cell: Cell, seed: int, output: Path) -> dict:
    """Pretraining, if the cell has any and it is not done, then the run downstream."""
    folder, opts = _folder(output, cell.name, seed), []
    record: dict[str, Any] = {"cell": cell.name, "seed": seed, "metric": cell.metrics[0]}
    record |= {"value": None, "pretrain": None}
    if cell.pretrain is not None:
        pretrained = _pretrain_folder(cell, seed)
        record["pretrain"] = _run(cell.pretrain, seed, pretrained)
        opts = [f"train.init_checkpoint={pretrained / 'backbone_final.pth'}"]
    downstream = _run(cell.downstream, seed, folder / "downstream", *opts)
    record["downstream"] = downstream
    record["value"] = cell.measured(record)[record["metric"]]
    record["machine"] = describe_machine(pick_device(downstream["settings"]["train"]["device"]))
    record |= {"lomar_det": lomar_det.__version__, "date": _today()}
    write_record(record, folder / "cell.json")
    return record


def _run(run: Run, seed: int, folder: Path, *opts: str) -> dict:
    """Starts a run, continues it, or only reads what it gave; returns its record."""
    run = run.with_opts(f"train.seed={seed}")
    record = read_begun(folder)
    comm.synchronize()  # all processes have looked
    if record is not None and "date" in record:  # then the folder may be read-only
        return record
    with alone_in(folder, "run.output_dir or run.pretrain_dir"):
        comm.synchronize()  # the main process has the folder
        return _run_alone(run, folder, *opts)


def _run_alone(run: Run, folder: Path, *opts: str) -> dict:
    """`_run` where no other command is.

    The seconds of a run that is stopped and continued are added up; those since its start are lost
    if it is killed without notice.
    """
    path = folder / "run.json"
    record = read_begun(folder)
    resume = record is not None
    if path.is_file():  # killed before its first checkpoint, it has left metrics behind
        opts = (*opts, "train.overwrite=True")
    comm.synchronize()  # all processes have looked
    if record is None:
        record = {"settings": run.settings(), "seconds": 0.0}
        write_record(record, path)
    elif "date" in record:
        return record
    _say(f"--- {'continued' if resume else 'started'}: {folder}")
    start = time.perf_counter()
    try:
        results = run.start(folder, *opts, resume=resume)
    finally:  # also when a signal ends it
        record["seconds"] = round(record["seconds"] + time.perf_counter() - start, 2)
        write_record(record, path)
        gc.collect()  # the next run gets the memory
        torch.cuda.empty_cache()
    metrics = read_metrics(folder / "metrics.json")
    batch = record["settings"]["train"].get("total_batch_size")
    if metrics and batch:
        record["images"] = (metrics[-1]["iteration"] + 1) * batch
    if isinstance(results, dict):
        record["results"] = {
            # what could not be computed (AP of large objects where there are none) is null
            task: {name: v if math.isfinite(v) else None for name, v in metrics.items()}
            for task, metrics in results.items()
        }
    record["date"] = _today()
    write_record(record, path)
    return comm.all_gather(record)[0]  # the main process alone has a detector's results


def _refuse_changes(cell: Cell, seed: int, output: Path) -> None:
    """Of a cell that is done, or of either of its runs that has begun."""
    folder = _folder(output, cell.name, seed)
    done = read_record(folder / "cell.json")
    for name, (run, where) in _runs(cell, seed, output).items():
        old = done[name] if done else where and read_begun(where)
        if old is None and not done:
            continue
        then = {name: old and old["settings"]}
        now = {name: run and run.with_opts(f"train.seed={seed}").settings()}
        chooses = "run.output_dir" if done else _chooses(where, output)
        refuse_changes(then, now, folder if done else where, chooses)


def _refuse_folders(cell: Cell, seed: int, output: Path) -> None:
    """Of a cell that is not done: where nothing can be written, or weights are gone."""
    if (_folder(output, cell.name, seed) / "cell.json").is_file():
        return
    for name, (run, where) in _runs(cell, seed, output).items():
        if run is None:
            continue
        record = read_begun(where)
        if record is None or "date" not in record:
            make_lock(where, _chooses(where, output)).close()
        elif name == "pretrain" and not (where / "backbone_final.pth").is_file():
            raise UserError(
                f"{where} is done, but its backbone_final.pth is gone: put it back, or delete "
                "that folder to pretrain again"
            )


def _runs(cell: Cell, seed: int, output: Path) -> dict[str, tuple[Run | None, Path | None]]:
    """Both runs of a cell, and where they are."""
    return {
        "pretrain": (cell.pretrain, _pretrain_folder(cell, seed)),
        "downstream": (cell.downstream, _folder(output, cell.name, seed) / "downstream"),
    }


def _chooses(folder: Path, output: Path) -> str:
    """The setting to change for another folder."""
    return "run.output_dir" if folder.is_relative_to(output) else "run.pretrain_dir"


def _folder(output: Path, cell: str, seed: int) -> Path:
    return output / cell / f"seed{seed}"


def _pretrain_folder(cell: Cell, seed: int) -> Path | None:
    return cell.pretrain and cell.pretrain_dir / f"seed{seed}" / "pretrain"


def _today() -> str:
    return datetime.date.today().isoformat()


def _say(text: str) -> None:
    if comm.is_main_process():
        print(text, flush=True)
