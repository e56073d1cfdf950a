"""Ablations, a grid of pretraining runs and what each is worth: what `tools/ablate.py` runs.

A cell is a way to pretrain, or none, and the run downstream that measures it. Every cell and seed
has a folder with its two runs, each with a ``run.json``, and a ``cell.json`` once both are done:
all that a restarted command needs to know.
"""

import argparse
import datetime
import gc
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

import lomar_det
from lomar_det.engine import pick_device, save_atomically
from lomar_det.engine.checkpointer import RESUMABLE
from lomar_det.engine.config import load_config
from lomar_det.engine.launch import describe_machine
from lomar_det.errors import UserError

from .ablation_plan import Cell, Run, in_cell, plan_cells
from .ablation_table import format_number, write_table
from .engine import read_metrics

# Settings that change how a run goes, but not what comes out.
_WITHOUT_EFFECT = ("num_workers", "log_period", "wandb")


def main(args: argparse.Namespace) -> list[dict]:
    """Runs what is not done yet, and writes table and plot anew after each cell.

    Returns:
        The contents of all ``cell.json`` files, seed by seed.

    Raises:
        UserError: anything the user can mend; of a run, with the name of its cell.
    """
    cfg = load_config(args.config_file, args.opts)
    cells = plan_cells(cfg)
    output = Path(cfg.run.output_dir)
    jobs = [(cell, seed) for seed in cfg.run.seeds for cell in cells]
    for cell, seed in jobs:  # all of them, before hours are spent on the first
        _refuse_changes(cell, seed, output)
    records = [_read(_folder(output, cell.name, seed) / "cell.json") for cell, seed in jobs]
    comm.synchronize()  # all processes have read them
    seconds: list[float] = []
    for number, (cell, seed) in enumerate(jobs):
        if records[number] is not None:
            continue
        title = f"=== {number + 1}/{len(jobs)} {cell.name}, seed {seed}"
        _say(title)
        start = time.perf_counter()
        try:
            with in_cell(cell.name):
                record = records[number] = _run_cell(cell, seed, output)
        except SystemExit:
            _say("Stopped by a signal: the same command continues here")
            raise
        seconds.append(time.perf_counter() - start)
        left = records.count(None) * sum(seconds) / len(seconds) / 60
        _say(f"{title}: {cell.metric} {format_number(record['value'])}; about {left:.0f} min left")
        if comm.is_main_process():
            write_table(cells, filter(None, records), cfg, output)
    if not seconds and comm.is_main_process():  # titles may have changed
        write_table(cells, records, cfg, output)
    if comm.is_main_process():
        print((output / "table.md").read_text())
    return records


def _run_cell(cell: Cell, seed: int, output: Path) -> dict:
    """Pretraining, if the cell has any and it is not done, then the run downstream."""
    folder, opts = _folder(output, cell.name, seed), []
    record: dict[str, Any] = {"cell": cell.name, "seed": seed, "metric": cell.metric}
    record |= {"value": None, "pretrain": None}
    if cell.pretrain is not None:
        pretrained = _pretrain_folder(cell, seed)
        record["pretrain"] = _run(cell.pretrain, seed, pretrained)
        opts = [f"train.init_checkpoint={pretrained / 'backbone_final.pth'}"]
    downstream = _run(cell.downstream, seed, folder / "downstream", *opts)
    task, _, name = cell.metric.partition("/")
    if name not in downstream["results"].get(task, {}):
        known = [f"{t}/{n}" for t, metrics in downstream["results"].items() for n in metrics]
        raise UserError(f"no metric {cell.metric} among the results: {', '.join(known)}")
    record["value"] = downstream["results"][task][name]
    record["downstream"] = downstream
    record["machine"] = describe_machine(pick_device(downstream["settings"]["train"]["device"]))
    record |= {"lomar_det": lomar_det.__version__, "date": _today()}
    _write(record, folder / "cell.json")
    return record


def _run(run: Run, seed: int, folder: Path, *opts: str) -> dict:
    """Starts a run, continues it, or only reads what it gave; returns its record.

    The seconds of a run that is stopped and continued are added up; those since its start are lost
    if it is killed without notice.
    """
    run, path = run.with_opts(f"train.seed={seed}"), folder / "run.json"
    record = _begun(folder)
    resume = record is not None
    if path.is_file():  # killed before its first checkpoint, it has left metrics behind
        opts = (*opts, "train.overwrite=True")
    comm.synchronize()  # all processes have looked
    if record is None:
        record = {"settings": run.settings(), "seconds": 0.0}
        folder.mkdir(parents=True, exist_ok=True)
        _write(record, path)
    elif "date" in record:
        return record
    _say(f"--- {'continued' if resume else 'started'}: {folder}")
    start = time.perf_counter()
    try:
        results = run.start(folder, *opts, resume=resume)
    finally:  # also when a signal ends it
        record["seconds"] = round(record["seconds"] + time.perf_counter() - start, 2)
        _write(record, path)
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
    _write(record, path)
    return comm.all_gather(record)[0]  # the main process alone has a detector's results


def _begun(folder: Path) -> dict | None:
    """The record of a run that is done, or has a checkpoint to go on from."""
    record = _read(folder / "run.json")
    if record is None or "date" in record:
        return record
    has_checkpoint = any(RESUMABLE.fullmatch(file.name) for file in folder.iterdir())
    return record if has_checkpoint else None


def _refuse_changes(cell: Cell, seed: int, output: Path) -> None:
    """A folder holds runs of one and the same settings."""
    folder = _folder(output, cell.name, seed)
    folders = {"pretrain": _pretrain_folder(cell, seed), "downstream": folder / "downstream"}
    record = _read(folder / "cell.json")
    then = {"metric": record["metric"]} if record else {}
    now = {"metric": cell.metric} if record else {}
    for name, run in (("pretrain", cell.pretrain), ("downstream", cell.downstream)):
        old = record[name] if record else folders[name] and _begun(folders[name])
        if old is None and not record:
            continue  # not begun
        then[name] = old and old["settings"]
        now[name] = run and run.with_opts(f"train.seed={seed}").settings()
    then, now = _flatten(then), _flatten(now)
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            name = key.partition(".")[0]
            where = folder if record else folders[name]
            what = "run.pretrain_dir" if where == folders["pretrain"] else "run.output_dir"
            raise UserError(
                f"{where} was run with other settings: {key} was {then.get(key)}, and is "
                f"{now.get(key)} now; go back to them, choose another {what}, or delete "
                "that folder to run the cell again"
            )


def _flatten(settings: dict, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names, without those that change no result."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if key in _WITHOUT_EFFECT:
            continue
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _folder(output: Path, cell: str, seed: int) -> Path:
    return output / cell / f"seed{seed}"


def _pretrain_folder(cell: Cell, seed: int) -> Path | None:
    return cell.pretrain and cell.pretrain_dir / f"seed{seed}" / "pretrain"


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _write(record: dict, path: Path) -> None:
    if comm.is_main_process():
        save_atomically(record, path)


def _today() -> str:
    return datetime.date.today().isoformat()


def _say(text: str) -> None:
    if comm.is_main_process():
        print(text, flush=True)
