"""What the config of an ablation may say: refused before anything is made or measured."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from lomar_det.config.rules import RUN_RULES, TEXT, Rule, check_settings, number, one_of, whole
from lomar_det.data.configure import as_list
from lomar_det.errors import UserError

_TEXT = Rule("text, and not empty", lambda value: isinstance(value, str) and value.strip() != "")
_OVERRIDES = Rule(
    "a list such as ['train.epochs=5']",
    lambda value: isinstance(value, ListConfig) and all(isinstance(v, str) for v in value),
)
_SEEDS = Rule(
    "a list of different whole numbers such as [0,1,2], each from 0 to 2**32 - 1",
    lambda value: (
        isinstance(value, ListConfig)
        and len(value) > 0
        # a seed that counts twice would make the spread too small
        and all(map(RUN_RULES["train.seed"].holds, value))
        and len(set(value)) == len(value)
    ),
)
_RUN_RULES = {
    "pretrain.config": _TEXT,
    "pretrain.overrides": _OVERRIDES,
    "downstream.config": _TEXT,
    "downstream.overrides": _OVERRIDES,
    "downstream.metric": Rule(
        "TASK/NAME such as bbox/AP, or a list of these",
        lambda value: bool(value) and all("/" in metric for metric in as_list(value)),
    ),
}
BUDGETS = "epochs", "images", "minutes"
_BUDGET_RULES = {f"budget.{kind}": number("(0, inf)") | one_of(None) for kind in BUDGETS}
_LINE = Rule(  # matplotlib hides labels with "_"
    'a name that does not begin with "_"',
    lambda value: _TEXT.holds(value) and not value.startswith("_"),
)
_PLACE_RULES = {"x": number("(-inf, inf)") | one_of(None), "line": _LINE | one_of(None)}
_CELL_RULES = _RUN_RULES | _BUDGET_RULES | _PLACE_RULES
_RULES = _RUN_RULES | {
    **_BUDGET_RULES,
    "downstream.stage": one_of("finetune", "detection"),
    "budget.calibration_steps": whole(1),
    "run.seeds": _SEEDS,
    "run.output_dir": _TEXT,
    "run.pretrain_dir": _TEXT | one_of(None),
    "run.title": TEXT,
    "run.x_label": TEXT | one_of(None),
}
# stage -> what its runs can be asked for
_METRICS = {
    "finetune": "classification/(top1|top5|knn_top1|images)",
    "detection": "(bbox|segm)/AP(50|75|s|m|l|-.+)?",
}
_SECTIONS = {
    "pretrain": ("config", "data", "overrides"),
    "downstream": ("stage", "config", "data", "overrides", "metric"),
    "cells": (),
    "budget": (*BUDGETS, "calibration_steps"),
    "run": ("seeds", "output_dir", "pretrain_dir", "title", "x_label"),
}


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


def check_ablation(cfg: DictConfig) -> None:
    """Refuses what cannot be; replaces ``~`` in folders, as no shell does behind a "=".

    Raises:
        UserError: names the setting, its value and what it must be.
    """
    for section, keys in _SECTIONS.items():
        settings = cfg.get(section)
        there = set(settings) if isinstance(settings, DictConfig) else set()  # also what is "???"
        missing = [key for key in keys if key not in there]
        if missing or not there:
            name = ".".join([section, *missing[:1]])
            raise UserError(f"the config has no {name}; see configs/ablation/")
    check_settings(cfg, _RULES)
    _check_metrics(cfg.downstream, cfg.downstream.stage)
    _check_budget(cfg.budget, "budget")
    for name, cell in cfg.cells.items():
        if not re.fullmatch(r"[\w+-][\w.+-]*", str(name)):
            raise UserError(f"cells: {name!r} is no name of letters, digits and .+-_")
        if cell is not None:
            _check_cell(name, cell, cfg.downstream.stage)
    places = [(c.line, c.x) for c in cfg.cells.values() if c and c.get("line")]
    for line, x in places:
        if places.count((line, x)) > 1:
            raise UserError(f"cells: several have x={x} on the line {line!r}: give each another")
    if all(cell is None for cell in cfg.cells.values()):
        raise UserError(f"cells: all of {', '.join(cfg.cells)} are null; leave one in")
    for key in ("output_dir", "pretrain_dir"):
        cfg.run[key] = cfg.run[key] and str(Path(cfg.run[key]).expanduser())


def _check_cell(name: str, cell: DictConfig, stage: str) -> None:
    _check_keys(cell, f"cells.{name}", {"pretrain", "downstream", "budget", "x", "line"})
    if cell.get("pretrain") is not None:
        _check_keys(cell.pretrain, f"cells.{name}.pretrain", {"config", "overrides"})
    if "downstream" in cell:
        keys = {"config", "overrides", "metric"}
        _check_keys(cell.downstream, f"cells.{name}.downstream", keys)
    budget = cell.get("budget")
    if budget is not None:
        _check_keys(budget, f"cells.{name}.budget", set(BUDGETS))
    with in_cell(name):
        check_settings(cell, _CELL_RULES)
        _check_metrics(cell.get("downstream", {}), stage)
    if budget is not None:
        _check_budget(budget, f"cells.{name}.budget")
        if "pretrain" in cell and cell.pretrain is None:
            raise UserError(f"cells.{name} has a budget, and no pretraining to spend it on")
    if cell.get("line") is not None and cell.get("x") is None:
        raise UserError(f"cells.{name} has a line, and no x, its place on it")


def _check_metrics(settings: DictConfig | dict, stage: str) -> None:
    """What no run of the stage has; that one without masks has no segm/AP shows at its end."""
    for metric in as_list(settings.metric) if "metric" in settings else ():
        if not re.fullmatch(_METRICS[stage], metric):
            raise UserError(
                f"downstream.metric={metric} is none of the stage {stage}; they are "
                f"{_METRICS[stage]} (| stands between choices)"
            )


def given_budgets(budget: DictConfig) -> dict[str, float]:
    """What a budget counts, and how much of it; one, once it is checked."""
    return {kind: budget[kind] for kind in BUDGETS if budget.get(kind) is not None}


def _check_budget(budget: DictConfig, name: str) -> None:
    given = given_budgets(budget)
    if len(given) != 1:
        raise UserError(
            f"{name} has {' and '.join(given) or 'nothing'}: give one of epochs, images and "
            "minutes, and set the others to null"
        )


def _check_keys(settings, name: str, known: set[str]) -> None:
    wrong = set(settings) - known if isinstance(settings, DictConfig) else {str(settings)}
    if wrong:
        raise UserError(f"{name} has no setting {min(wrong)!r}; it has {', '.join(sorted(known))}")
