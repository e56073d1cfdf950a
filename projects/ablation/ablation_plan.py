"""What an ablation's config asks for: its cells, their runs, and how long each pretrains."""

import argparse
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablation_checks import check_ablation, given_budgets, in_cell
from ablation_records import alone_in, read_begun, read_record, refuse_changes, write_record
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig, OmegaConf

from lomar_det.config.lazy import find_config, load_config, require_sections
from lomar_det.config.rules import check_settings, number, whole
from lomar_det.data.configure import as_list
from lomar_det.detection import train as detection
from lomar_det.errors import UserError
from lomar_pretrain.data.sources import find_images
from lomar_pretrain.runs import finetune
from lomar_pretrain.runs import pretrain as engine

# stage -> what runs it, and the folder of its recipes
STAGES = {
    "pretrain": (engine.main, "pretrain"),
    "finetune": (finetune.main, "imagenet"),
    "detection": (detection.main, "custom"),
}
_PRETRAIN_RULES = {
    "train.epochs": number("(0, inf)"),
    "train.warmup_epochs": number("[0, inf)"),
    "train.total_batch_size": whole(1),
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
        budget: Of the pretraining, such as "4 minutes".
        downstream: The run that is measured.
        metrics: Each is ``TASK/NAME`` in its results.
        x: Where it lies on the horizontal axis of the plot; None: nowhere.
        line: Name of the line that it is a point of, where the plot has several.
    """

    name: str
    pretrain: Run | None
    pretrain_dir: Path | None
    budget: str | None
    downstream: Run
    metrics: tuple[str, ...]
    x: float | None = None
    line: str | None = None

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
    check_ablation(cfg)
    cells: list[Cell] = []
    pretrainings: dict[tuple[Run, str, float], tuple[Run, Path]] = {}
    timed: dict[Run, float] = {}
    for name, settings in cfg.cells.items():
        if settings is None:  # left out, by cells.NAME=null
            continue
        with in_cell(name):
            own = settings.get("downstream", {})
            downstream = _make_run(cfg.downstream.stage, cfg.downstream, own, "downstream")
            downstream.load()  # what is mistyped shows now
            pretrain, folder, budget = None, None, None
            own = settings.get("pretrain", {})
            if own is not None:
                run = _make_run("pretrain", cfg.pretrain, own, "pretrain")
                ((kind, amount),) = given_budgets(settings.get("budget") or cfg.budget).items()
                length = run, kind, amount
                if length not in pretrainings:
                    folder = Path(cfg.run.pretrain_dir or cfg.run.output_dir, name)
                    steps = cfg.budget.calibration_steps
                    pretrainings[length] = _limit(*length, steps, folder, timed), folder
                pretrain, folder = pretrainings[length]
                budget = f"{amount:,.10g} {kind}"
        metrics = as_list(settings.get("downstream", {}).get("metric", cfg.downstream.metric))
        metrics = tuple(dict.fromkeys(metrics))  # each once
        place = settings.get("x"), settings.get("line")
        cells.append(Cell(name, pretrain, folder, budget, downstream, metrics, *place))
    return cells


def _make_run(stage: str, common: DictConfig, own: DictConfig, section: str) -> Run:
    """What all cells have in common, then what is the cell's own."""
    main, recipes = STAGES[stage]
    config = find_config(own.get("config", common.config), recipes)
    opts = [*common.overrides, *_data_opts(common, section), *own.get("overrides", [])]
    return Run(main, config, tuple(opts))


def _data_opts(section: DictConfig, name: str) -> list[str]:
    """``data`` of a section as overrides: a path, or settings by name; null for none."""
    if OmegaConf.is_missing(section, "data"):
        raise UserError(f"{name}.data is not set: give the folder of your images")
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
        quoted = (str(item).replace("'", "\\'") for item in value)
        return "[" + ",".join(f"'{item}'" for item in quoted) + "]"
    return "null" if value is None else str(value)


def _limit(
    run: Run, kind: str, amount: float, steps: int, folder: Path, timed: dict[Run, float]
) -> Run:
    """Pretraining that is as long as the budget, with the same share of warm-up as its config.

    Args:
        run: Of any length.
        kind, amount: The budget.
        steps: To time for a budget in minutes.
        folder: Where that is kept.
        timed: Seconds per step of runs that were timed for other budgets; the run's is added.
    """
    cfg = run.load()
    require_sections(cfg, run.config, "pretrain", "data.crop_scale", *_PRETRAIN_RULES)
    check_settings(cfg, _PRETRAIN_RULES)
    if OmegaConf.is_missing(cfg.data, "path"):
        raise UserError("pretrain.data is not set: give the folder of your images")
    epochs = amount
    if kind != "epochs":
        batch = cfg.train.total_batch_size
        num_images = len(find_images(as_list(cfg.data.path), cfg.data.image_root))
        iters_per_epoch = max(1, num_images // batch)
        if kind == "images":
            iterations = amount / batch
        else:
            timed[run] = _seconds_per_step(run, steps, iters_per_epoch, folder, timed.get(run))
            iterations = 60 * amount / timed[run]
        epochs = _epochs(max(1, round(iterations)), iters_per_epoch)
    warmup = cfg.train.warmup_epochs * epochs / cfg.train.epochs
    return run.with_opts(f"train.epochs={epochs!r}", f"train.warmup_epochs={warmup!r}")


def _epochs(iterations: int, iters_per_epoch: int) -> float:
    """Epochs of a run that is to have so many iterations, although it rounds up."""
    epochs = iterations / iters_per_epoch
    if math.ceil(epochs * iters_per_epoch) > iterations:
        epochs = math.nextafter(epochs, 0)
    return epochs


def _seconds_per_step(
    run: Run, steps: int, iters_per_epoch: int, folder: Path, timed: float | None
) -> float:
    """Mean time of a step, waiting for images included; measured once for these settings.

    Not again once a run of that length has begun: it could no longer be continued, or shared.
    ``timed`` is what another cell measured: cells that differ in their budgets alone have one pace.
    """
    path, settings = folder / "calibration.json", run.settings()
    chooses = "run.output_dir or run.pretrain_dir"
    record = read_record(path) or {}
    begun = record and any(map(read_begun, folder.glob("seed*/pretrain")))
    comm.synchronize()  # all processes have looked
    if begun:
        refuse_changes(record["settings"], settings, folder, chooses)
    if begun or (record.get("settings"), record.get("steps")) == (settings, steps):
        return record["seconds_per_step"]
    with alone_in(folder, chooses):
        seconds = timed or _calibrate(run, steps, iters_per_epoch, folder / "calibration")
        record = {"seconds_per_step": seconds, "steps": steps, "settings": settings}
        write_record(record, path)
    return comm.all_gather(record["seconds_per_step"])[0]


def _calibrate(run: Run, steps: int, iters_per_epoch: int, scratch: Path) -> float:
    epochs = _epochs(_UNTIMED_STEPS + steps, iters_per_epoch)
    length = [f"train.epochs={epochs!r}", "train.warmup_epochs=0"]
    only = ["train.picture_epochs=0", "train.probe.path=", "train.log_period=1"]
    run.start(scratch, *length, *only, "train.overwrite=True")
    comm.synchronize()  # the main process has written them
    metrics = engine.read_metrics(scratch / "metrics.json")
    times = [line["time"] for line in metrics if line["iteration"] >= _UNTIMED_STEPS]
    comm.synchronize()  # all processes have read them
    if comm.is_main_process():
        shutil.rmtree(scratch)
    return sum(times) / len(times)
