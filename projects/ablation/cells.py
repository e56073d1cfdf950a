"""Reads an ablation's config: its cells, and the runs of each.

A cell is a row of the table: a way to pretrain, or none, and the run downstream that measures it.
"""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from lomar_det.config.lazy import find_config, load_config
from lomar_det.detection import train as detection
from lomar_det.errors import UserError
from lomar_pretrain.runs import finetune, pretrain

# stage -> what runs it, and the folder of its recipes
STAGES = {
    "pretrain": (pretrain.main, "pretrain"),
    "finetune": (finetune.main, "imagenet"),
    "detection": (detection.main, "custom"),
}


@dataclass(frozen=True)
class Run:
    """A run of one of the tools.

    Attributes:
        stage: A key of `STAGES`.
        config: The config file.
        overrides: As on a command line.
        folder: Where it writes.
        pretraining: The run whose weights it starts from; None: random weights.
    """

    stage: str
    config: Path
    overrides: tuple[str, ...]
    folder: Path
    pretraining: "Run | None" = None

    def with_seed(self, seed: int) -> "Run":
        return replace(
            self,
            overrides=(*self.overrides, f"train.seed={seed}"),
            folder=self.folder / f"seed{seed}" / self.stage,
            pretraining=self.pretraining and self.pretraining.with_seed(seed),
        )

    def load(self) -> DictConfig:
        return load_config(self.config, list(self.overrides))

    def describe(self) -> dict:
        """What its result depends on, as plain data."""
        pretraining = self.pretraining and self.pretraining.describe()
        overrides = list(self.overrides)
        return {"config": self.config.stem, "overrides": overrides, "pretraining": pretraining}

    def start(self) -> Any:
        """Starts it, or continues from its last checkpoint; returns what its tool returns."""
        # Without a checkpoint, overwrite deletes the metrics that a killed run has left.
        opts = [*self.overrides, f"train.output_dir={self.folder}", "train.overwrite=True"]
        if self.pretraining:
            opts.append(f"train.init_checkpoint={self.pretraining.folder / 'backbone_final.pth'}")
        config = str(self.config)
        main, _ = STAGES[self.stage]
        return main(argparse.Namespace(config_file=config, opts=opts, resume=True, eval_only=False))


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        name: Of its folder, too.
        run: The run that is measured; each seed has one.
        budget: Of the pretraining, such as "4 minutes".
        x: Where it lies on the horizontal axis of the plot; None: nowhere.
        line: The line that it is a point of, where the plot has several.
    """

    name: str
    run: Run
    budget: str = ""
    x: float | None = None
    line: str | None = None


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


def read_cells(cfg: DictConfig) -> list[Cell]:
    """All cells of a config as in `configs/ablation`.

    Loads the config of every run, so that what is mistyped shows before the first one.

    Raises:
        UserError: a setting is missing, or there is none of that name.
    """
    settings = {}
    for name in ("pretrain", "downstream", "cells", "budget", "run"):
        if name not in cfg:
            raise UserError(f"the config has no {name}; see configs/ablation for ablations")
        try:
            section = OmegaConf.to_container(cfg[name], resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            raise UserError(f"{error.full_key} is not set: add it to the command") from None
        settings[name] = section
    cells, shared = [], {}
    for name, cell in settings["cells"].items():
        if cell is not None:  # cells.NAME=null leaves it out
            with in_cell(name):
                cells.append(_read_cell(name, cell, settings, shared))
    return cells


def _read_cell(name: str, cell: dict, settings: dict, shared: dict) -> Cell:
    """A cell; ``shared`` holds the pretrainings so far, by their config and overrides."""
    _refuse_unknown(cell, "pretrain", "downstream", "budget", "x", "line")
    folder = Path(settings["run"]["output_dir"], name).expanduser()
    own = cell.get("downstream", {})
    run = _make_run(settings["downstream"]["stage"], settings["downstream"], own, folder)
    run.load()
    own, budget = cell.get("pretrain", {}), ""
    if own is not None:
        folder = Path(settings["run"]["pretrain_dir"] or folder.parent, name).expanduser()
        pretraining = _make_run("pretrain", settings["pretrain"], own, folder)
        budget, length = _read_budget(cell.get("budget") or settings["budget"], pretraining)
        pretraining = replace(pretraining, overrides=(*pretraining.overrides, *length))
        pretraining.load()
        # equal ones are run once, in the folder of the first cell
        key = pretraining.config, pretraining.overrides
        run = replace(run, pretraining=shared.setdefault(key, pretraining))
    return Cell(name, run, budget, cell.get("x"), cell.get("line"))


def _make_run(stage: str, common: dict, own: dict, folder: Path) -> Run:
    """What all cells have in common, then what is the cell's own."""
    _refuse_unknown(own, "config", "overrides")
    if stage not in STAGES:
        raise UserError(f"downstream.stage={stage} must be finetune or detection")
    data = common["data"] if isinstance(common["data"], dict) else {"path": common["data"]}
    overrides = (*common["overrides"], *_flatten(data, "data"), *own.get("overrides", []))
    config = find_config(own.get("config", common["config"]), STAGES[stage][1])
    return Run(stage, config, overrides, folder)


def _read_budget(budget: dict, run: Run) -> tuple[str, list[str]]:
    """What the table says about the length of a pretraining, and the overrides that set it."""
    _refuse_unknown(budget, "epochs", "minutes")
    epochs, minutes = budget.get("epochs"), budget.get("minutes")
    if (epochs is None) == (minutes is None):
        raise UserError("budget: give epochs or minutes, and set the other to null")
    if epochs is None:
        return f"{minutes:g} minutes", [f"train.max_minutes={minutes}"]
    train = run.load().train  # the share of warm-up stays as it is there
    warmup = train.warmup_epochs * epochs / train.epochs
    return f"{epochs:g} epochs", [f"train.epochs={epochs}", f"train.warmup_epochs={warmup}"]


def _flatten(settings: dict, prefix: str) -> Iterator[str]:
    """Nested settings as overrides; null leaves a setting as it is."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}.{key}")
        elif value is not None:
            yield f"{prefix}.{key}={value}"


def _refuse_unknown(settings: dict, *known: str) -> None:
    if unknown := set(settings) - set(known):
        raise UserError(f"no setting {min(unknown)!r}: there are {', '.join(known)}")
