"""What an ablation's config asks for: its cells, their runs, and how long each pretrains."""

import argparse
import contextlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig, OmegaConf

from lomar_det.data.setup import as_list
from lomar_det.engine import detection
from lomar_det.engine.config import find_config, load_config
from lomar_det.errors import UserError
from lomar_det.settings import Rule, check_settings, number, one_of, whole

from . import engine, finetune
from .ablation_records import read_begun, read_record, refuse_changes, write_record
from .sources import find_images

# stage -> what runs it, and the folder of its recipes
STAGES = {
    "pretrain": (engine.main, "pretrain"),
    "finetune": (finetune.main, "imagenet"),
    "detection": (detection.main, "custom"),
}
_CELL_RULES = {
    "downstream.metric": Rule(
        "TASK/NAME such as bbox/AP, or a list of these",
        lambda value: bool(value) and all("/" in metric for metric in as_list(value)),
    ),
}
_RULES = _CELL_RULES | {
    "downstream.stage": one_of("finetune", "detection"),
    "budget.epochs": number("(0, inf)") | one_of(None),
    "budget.images": number("(0, inf)") | one_of(None),
    "budget.minutes": number("(0, inf)") | one_of(None),
    "budget.calibration_steps": whole(1),
}
_PRETRAIN_RULES = {
    "train.epochs": number("(0, inf)"),
    "train.warmup_epochs": number("[0, inf)"),
    "train.total_batch_size": whole(1),
}
_SECTIONS = {
    "pretrain": ("config", "data", "overrides"),
    "downstream": ("stage", "config", "data", "overrides", "metric"),
    "cells": (),
    "budget": ("epochs", "images", "minutes", "calibration_steps"),
    "run": ("seeds", "output_dir", "pretrain_dir", "title", "x_label"),
}
_UNTIMED_STEPS = 5  # of a calibration: the first steps are slower


@dataclass(frozen=True)
class Run:
    """A run of one of the tools.

    Attributes:
        main: What the tool calls.
        config: The config file.
        opts: Overrides, as on a command line.
    """

    main: Callable[[argparse.Namespace], Any]
    config: Path
    opts: tuple[str, ...]

    def with_opts(self, *opts: str) -> "Run":
        return replace(self, opts=(*self.opts, *opts))

    def load(self) -> DictConfig:
        return load_config(self.config, list(self.opts))

    def settings(self) -> dict:
        """The whole config as plain data; what it calls, by name."""
        plain = OmegaConf.to_container(self.load(), resolve=True)
        return json.loads(json.dumps(plain, default=lambda v: getattr(v, "__qualname__", str(v))))

    def start(self, folder: Path, *opts: str, resume: bool = False) -> Any:
        """Runs it in a folder, with overrides that say how and not what."""
        opts = [*self.opts, *opts, f"train.output_dir={folder}"]
        config = str(self.config)
        return self.main(
            argparse.Namespace(config_file=config, opts=opts, resume=resume, eval_only=False)
        )


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        name: Of its folder, too.
        pretrain: None starts from random weights.
        pretrain_dir: Where the pretraining lies: the folder of the first cell that has this one.
        downstream: The run that is measured.
        metrics: Each is ``TASK/NAME`` in its results.
        x: Where it lies on the horizontal axis of the plot; None: nowhere.
    """

    name: str
    pretrain: Run | None
    pretrain_dir: Path | None
    downstream: Run
    metrics: tuple[str, ...]
    x: float | None

    def measured(self, record: dict) -> dict[str, float | None]:
        """The metrics of a run downstream, from its ``results``; None: could not be computed.

        Raises:
            UserError: it has no such metric; names those that there are.
        """
        results = {
            f"{task}/{name}": value
            for task, metrics in record["downstream"].get("results", {}).items()
            for name, value in metrics.items()
        }
        for metric in self.metrics:
            if metric not in results:
                raise UserError(
                    f"no metric {metric} among the results; downstream.metric can be "
                    f"{', '.join(results)}"
                )
        return {metric: results[metric] for metric in self.metrics}


def plan_cells(cfg: DictConfig) -> list[Cell]:
    """All cells of a config, with the pretraining times that ``budget`` asks for.

    With ``budget.minutes`` this takes time: each way to pretrain is run for some steps, once;
    ``calibration.json`` in its cell's folder keeps the result.

    Args:
        cfg: As in `configs/ablation`, overrides applied.

    Raises:
        UserError: anything that is wrong with it or with the configs that it names.
    """
    _check(cfg)
    cells: list[Cell] = []
    pretrainings: dict[Run, tuple[Run, Path]] = {}
    for name, settings in cfg.cells.items():
        if settings is None:  # left out, by cells.NAME=null
            continue
        with in_cell(name):
            own = settings.get("downstream", {})
            downstream = _make_run(cfg.downstream.stage, cfg.downstream, own, "downstream")
            downstream.load()  # what is mistyped shows now
            pretrain, folder, own = None, None, settings.get("pretrain", {})
            if own is not None:
                asked_for = _make_run("pretrain", cfg.pretrain, own, "pretrain")
                if asked_for not in pretrainings:
                    folder = Path(cfg.run.pretrain_dir or cfg.run.output_dir, name)
                    pretrainings[asked_for] = _limit(asked_for, cfg.budget, folder), folder
                pretrain, folder = pretrainings[asked_for]
        metrics = as_list(settings.get("downstream", {}).get("metric", cfg.downstream.metric))
        metrics = tuple(dict.fromkeys(metrics))  # each once
        cells.append(Cell(name, pretrain, folder, downstream, metrics, settings.get("x")))
    return cells


@contextlib.contextmanager
def in_cell(name: str) -> Iterator[None]:
    """Errors from inside name the cell."""
    try:
        yield
    except UserError as error:
        raise UserError(f"cell {name}: {error}") from error
    except Exception as error:
        error.add_note(f"in cell {name}")
        raise


def _check(cfg: DictConfig) -> None:
    for section, keys in _SECTIONS.items():
        there = set(cfg.get(section) or ())  # also what is "???"
        missing = [key for key in keys if key not in there]
        if missing or not there:
            name = ".".join([section, *missing[:1]])
            raise UserError(f"the config has no {name}; see configs/ablation/")
    check_settings(cfg, _RULES)
    given = [key for key in ("epochs", "images", "minutes") if cfg.budget[key] is not None]
    if len(given) != 1:
        raise UserError(
            f"budget has {' and '.join(given) or 'nothing'}: give one of epochs, images and "
            "minutes, and set the others to null"
        )
    seeds = cfg.run.seeds
    if not isinstance(seeds, ListConfig) or not seeds or not all(map(whole(0).holds, seeds)):
        raise UserError(f"run.seeds={seeds} must be a list of whole numbers such as [0,1,2]")
    for name, cell in cfg.cells.items():
        if not re.fullmatch(r"[\w.+-]+", str(name)):
            raise UserError(f"cells: {name!r} is no name of letters, digits and .+-_")
        if cell is None:
            continue
        _check_keys(cell, f"cells.{name}", {"pretrain", "downstream", "x"})
        if cell.get("pretrain") is not None:
            _check_keys(cell.pretrain, f"cells.{name}.pretrain", {"config", "overrides"})
        if "downstream" in cell:
            keys = {"config", "overrides", "metric"}
            _check_keys(cell.downstream, f"cells.{name}.downstream", keys)
            with in_cell(name):
                check_settings(cell, _CELL_RULES)


def _check_keys(settings, name: str, known: set[str]) -> None:
    wrong = set(settings) - known if isinstance(settings, DictConfig) else {str(settings)}
    if wrong:
        raise UserError(f"{name} has no setting {min(wrong)!r}; it has {', '.join(sorted(known))}")


def _make_run(stage: str, common: DictConfig, own: DictConfig, section: str) -> Run:
    """What all cells have in common, then what is the cell's own."""
    main, recipes = STAGES[stage]
    config = find_config(own.get("config", common.config), recipes)
    overrides = common.overrides, own.get("overrides", [])
    for some in overrides:
        if not isinstance(some, ListConfig | list):
            raise UserError(f"{section}.overrides={some} must be a list such as ['train.epochs=5']")
    opts = [*overrides[0], *_data_opts(common, section), *overrides[1]]
    return Run(main, config, tuple(opts))


def _data_opts(section: DictConfig, name: str) -> list[str]:
    """``data`` of a section as overrides: a path, or settings by name; null for none."""
    if OmegaConf.is_missing(section, "data"):
        raise UserError(f"{name}.data is not set: give the folder of your pictures")
    if not isinstance(section.data, DictConfig):
        return [] if section.data is None else [f"data.path={_text(section.data)}"]
    return _flatten_data(section.data, name)


def _flatten_data(settings: DictConfig, name: str, prefix: str = "data.") -> list[str]:
    opts = []
    for key in settings:
        if OmegaConf.is_missing(settings, key):
            raise UserError(f"{name}.{prefix}{key} is not set")
        if isinstance(settings[key], DictConfig):
            opts += _flatten_data(settings[key], name, f"{prefix}{key}.")
        else:
            opts.append(f"{prefix}{key}={_text(settings[key])}")
    return opts


def _text(value) -> str:
    """A path or several, as an override has them."""
    if isinstance(value, ListConfig):
        return "[" + ",".join(f"'{item}'" for item in value) + "]"
    return str(value)


def _limit(run: Run, budget: DictConfig, folder: Path) -> Run:
    """Pretraining that is as long as the budget, with the same share of warm-up as its config."""
    cfg = run.load()
    check_settings(cfg, _PRETRAIN_RULES)
    epochs = budget.epochs
    if epochs is None:
        batch = cfg.train.total_batch_size
        num_images = len(find_images(as_list(cfg.data.path), cfg.data.image_root))
        iters_per_epoch = max(1, num_images // batch)
        if budget.images is not None:
            iterations = budget.images / batch
        else:
            seconds = _seconds_per_step(run, budget.calibration_steps, iters_per_epoch, folder)
            iterations = 60 * budget.minutes / seconds
        epochs = _epochs(max(1, round(iterations)), iters_per_epoch)
    warmup = cfg.train.warmup_epochs * epochs / cfg.train.epochs
    return run.with_opts(f"train.epochs={epochs!r}", f"train.warmup_epochs={warmup!r}")


def _epochs(iterations: int, iters_per_epoch: int) -> float:
    """Epochs of a run that is to have so many iterations, although it rounds up."""
    epochs = iterations / iters_per_epoch
    if math.ceil(epochs * iters_per_epoch) > iterations:
        epochs = math.nextafter(epochs, 0)
    return epochs


def _seconds_per_step(run: Run, steps: int, iters_per_epoch: int, folder: Path) -> float:
    """Mean time of a step, waiting for pictures included; measured once for these settings.

    Not again once a run of that length has begun: it could no longer be continued, or shared.
    """
    path, settings = folder / "calibration.json", run.settings()
    record = read_record(path) or {}
    begun = record and any(map(read_begun, folder.glob("seed*/pretrain")))
    comm.synchronize()  # all processes have looked
    if begun:
        refuse_changes(record["settings"], settings, folder, "run.output_dir or run.pretrain_dir")
    if begun or (record.get("settings"), record.get("steps")) == (settings, steps):
        return record["seconds_per_step"]
    scratch = folder / "calibration"
    epochs = _epochs(_UNTIMED_STEPS + steps, iters_per_epoch)
    length = [f"train.epochs={epochs!r}", "train.warmup_epochs=0"]
    only = ["train.picture_epochs=0", "train.probe.path=", "train.log_period=1"]
    run.start(scratch, *length, *only, "train.overwrite=True")
    comm.synchronize()  # the main process has written them
    metrics = engine.read_metrics(scratch / "metrics.json")
    times = [line["time"] for line in metrics if line["iteration"] >= _UNTIMED_STEPS]
    record = {"seconds_per_step": sum(times) / len(times), "steps": steps, "settings": settings}
    comm.synchronize()  # all processes have read them
    write_record(record, path)
    if comm.is_main_process():
        shutil.rmtree(scratch)
    return comm.all_gather(record["seconds_per_step"])[0]
