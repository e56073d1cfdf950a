"""Reads an ablation's config: its cells, and the runs of each.

A cell is a row of the table: a way to pretrain, or none, and the run downstream that measures it.
"""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

from lomar_det.config.lazy import as_list, find_config, load_config
from lomar_det.config.rules import TEXT, Rule, number, one_of
from lomar_det.config.section import Section, setting
from lomar_det.config.settings import SEED
from lomar_det.detection import train as detection
from lomar_det.detection.settings import check_detection_config
from lomar_det.errors import UserError
from lomar_pretrain.data.sources import find_images
from lomar_pretrain.runs import finetune, pretrain
from lomar_pretrain.runs.settings import (
    FinetuneData,
    FinetuneSettings,
    PretrainData,
    PretrainSettings,
)

_NAME = Rule("text, and not empty", lambda value: TEXT.holds(value) and bool(value.strip()))
_SECTION = Rule("a section of settings", lambda value: isinstance(value, dict))
_TEXTS = Rule(
    "a list such as ['train.epochs=5']",
    lambda value: isinstance(value, list) and all(map(TEXT.holds, value)),
)
_DATA = Rule(
    "a path, a list of paths, or settings",
    lambda value: value is None or isinstance(value, str | list | dict),
)
_METRIC = Rule(
    "TASK/NAME such as bbox/AP, or a list of these",
    lambda value: bool(value) and all("/" in metric for metric in as_list(value)),
)
_SEEDS = Rule(
    "a list of different seeds such as [0,1,2]",
    lambda value: (
        isinstance(value, list)
        and len(value) > 0
        and all(map(SEED.holds, value))
        and len(set(value)) == len(value)
    ),
)


@dataclass(frozen=True, kw_only=True)
class Pretraining(Section):
    """What the pretrainings of all cells have in common."""

    config: str = setting(MISSING, _NAME, "give the name of a recipe")
    data: Any = setting(None, _DATA, "the folder of the images; null: as the recipe says")
    overrides: list[str] = setting([], _TEXTS, "settings, as on a command line")


@dataclass(frozen=True, kw_only=True)
class Downstream(Pretraining):
    """What the runs that are measured have in common."""

    stage: str = setting(MISSING, one_of("finetune", "detection"), "give the stage")
    metric: str | list[str] = setting(MISSING, _METRIC, "give a metric of the results")


@dataclass(frozen=True, kw_only=True)
class Budget(Section):
    """The length of a pretraining: one of the two."""

    epochs: float | None = setting(None, number("(0, inf)") | one_of(None), "passes over the data")
    minutes: float | None = setting(None, number("(0, inf)") | one_of(None), "of training")


@dataclass(frozen=True, kw_only=True)
class Grid(Section):
    """Which runs there are, where they write, and what the table and the plot say."""

    seeds: list[int] = setting([0, 1, 2], _SEEDS, "of all runs")
    output_dir: str = setting(MISSING, _NAME, "give the folder for all runs")
    pretrain_dir: str | None = setting(None, _NAME | one_of(None), "shares pretrainings")
    title: str = setting("", TEXT, "of table and plot")
    x_label: str | None = setting(None, TEXT | one_of(None), "the plot has curves over x")


@dataclass(frozen=True, kw_only=True)
class CellSettings(Section):
    """What a cell has of its own."""

    pretrain: dict | None = setting({}, _SECTION | one_of(None), "null: random weights")
    downstream: dict = setting({}, _SECTION, "of the run that is measured")
    budget: dict | None = setting(None, _SECTION | one_of(None), "of its pretraining")
    x: float | None = setting(None, number("(-inf, inf)") | one_of(None), "place in the plot")
    line: str | None = setting(None, _NAME | one_of(None), "curve in the plot")


def _check_pretraining(cfg: DictConfig, _path: str) -> None:
    PretrainSettings.read(cfg, "train")
    data = PretrainData.read(cfg, "data")
    find_images(as_list(data.path), data.image_root)


def _check_finetuning(cfg: DictConfig, _path: str) -> None:
    FinetuneSettings.read(cfg, "train")
    FinetuneData.read(cfg, "data")


# stage -> what runs it, the folder of its recipes, and what refuses a config
STAGES = {
    "pretrain": (pretrain.main, "pretrain", _check_pretraining),
    "finetune": (finetune.main, "imagenet", _check_finetuning),
    "detection": (detection.main, "custom", check_detection_config),
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
        """The run of one seed, which also stands for ``{seed}`` in the overrides."""
        overrides = (override.replace("{seed}", str(seed)) for override in self.overrides)
        return replace(
            self,
            overrides=(*overrides, f"train.seed={seed}"),
            folder=self.folder / f"seed{seed}" / self.stage,
            pretraining=self.pretraining and self.pretraining.with_seed(seed),
        )

    def load(self) -> DictConfig:
        return load_config(self.config, list(self.overrides))

    def check(self) -> None:
        """Refuses settings that the run would refuse, before the first run has begun."""
        STAGES[self.stage][2](self.load(), str(self.config))

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
        config, resume = str(self.config), any(self.folder.glob("model_*.pth"))
        return STAGES[self.stage][0](
            argparse.Namespace(config_file=config, opts=opts, resume=resume, eval_only=False)
        )


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

    Checks the config of every run, so that what is wrong shows before the first one.

    Raises:
        UserError: a setting is missing or wrong, or there is none of that name.
    """
    for name in ("pretrain", "downstream", "cells", "budget", "run"):
        if not isinstance(cfg.get(name), DictConfig):
            raise UserError(f"the config has no section {name}; see configs/ablation for ablations")
    grid = Grid.read(cfg, "run")
    parts = Pretraining.read(cfg, "pretrain"), Downstream.read(cfg, "downstream")
    cells, shared = [], {}
    for name, cell in cfg.cells.items():
        if cell is not None:  # cells.NAME=null leaves it out
            own = CellSettings.read(cfg, f"cells.{name}")
            section = f"cells.{name}.budget" if own.budget else "budget"
            with in_cell(name):
                budget = Budget.read(cfg, section)
                cells.append(_read_cell(name, own, budget, *parts, grid, shared))
    if not cells:
        raise UserError(f"cells: all of {', '.join(cfg.cells)} are null; leave one in")
    return cells


def _read_cell(
    name: str,
    own: CellSettings,
    budget: Budget,
    pretraining: Pretraining,
    downstream: Downstream,
    grid: Grid,
    shared: dict,
) -> Cell:
    """A cell; ``shared`` holds the pretrainings so far, by their config and overrides."""
    folder = Path(grid.output_dir, name).expanduser()
    run = _make_run(downstream.stage, downstream, own.downstream, folder)
    run.check()
    if own.pretrain is None:
        return Cell(name, run, "", own.x, own.line)
    folder = Path(grid.pretrain_dir or folder.parent, name).expanduser()
    first = _make_run("pretrain", pretraining, own.pretrain, folder)
    title, length = _read_budget(budget, first)
    first = replace(first, overrides=(*first.overrides, *length))
    first.check()
    # equal ones are run once, in the folder of the first cell
    first = shared.setdefault((first.config, first.overrides), first)
    return Cell(name, replace(run, pretraining=first), title, own.x, own.line)


def _make_run(stage: str, common: Pretraining, own: dict, folder: Path) -> Run:
    """What all cells have in common, then what is the cell's own."""
    if unknown := set(own) - {"config", "overrides"}:
        raise UserError(f"no setting {min(unknown)!r}: there are config and overrides")
    data = common.data if isinstance(common.data, dict) else {"path": common.data}
    overrides = (*common.overrides, *_flatten(data, "data"), *own.get("overrides", []))
    config = find_config(own.get("config", common.config), STAGES[stage][1])
    return Run(stage, config, overrides, folder)


def _read_budget(budget: Budget, run: Run) -> tuple[str, list[str]]:
    """What the table says about the length of a pretraining, and the overrides that set it."""
    epochs, minutes = budget.epochs, budget.minutes
    if (epochs is None) == (minutes is None):
        raise UserError("budget: give epochs or minutes, and set the other to null")
    if epochs is None:
        return f"{minutes:g} minutes", [f"train.max_minutes={minutes}"]
    train = PretrainSettings.read(run.load(), "train")  # its share of warm-up stays
    warmup = train.warmup_epochs * epochs / train.epochs
    return f"{epochs:g} epochs", [f"train.epochs={epochs}", f"train.warmup_epochs={warmup}"]


def _flatten(settings: dict, prefix: str) -> Iterator[str]:
    """Nested settings as overrides; null leaves a setting as it is."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}.{key}")
        elif value == MISSING:
            raise UserError(f"{prefix}.{key} is not set: add it to the command")
        elif value is not None:
            yield f"{prefix}.{key}={value}"
