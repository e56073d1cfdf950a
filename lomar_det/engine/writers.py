"""Where metrics go: terminal, ``metrics.json``, TensorBoard, W&B, ``metrics_test.json``."""

import contextlib
import dataclasses
import datetime
import importlib
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

from detectron2.engine.hooks import PeriodicWriter
from detectron2.evaluation import print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from ..config.settings import RunSettings
from ..errors import UserError

logger = logging.getLogger(__name__)

WANDB_RUN_FILE = "wandb_run.txt"


class WriteMetrics(PeriodicWriter):
    """detectron2's hook, with writers that are made when training starts.

    A run that is refused earlier leaves no files and no W&B run.
    """

    def __init__(self, make_writers: Callable[[], list[EventWriter]], period: int):
        super().__init__([], period)
        self._make_writers = make_writers

    def before_train(self) -> None:
        self._writers = self._make_writers()

    def after_train(self) -> None:
        for writer in self._writers:
            if isinstance(writer, MetricPrinter):
                writer.end_at(self.trainer.max_iter)
        super().after_train()


def writer_hook(settings: RunSettings, max_iter: int) -> WriteMetrics:
    """The hook with all writers that the ``train`` section of a config asks for.

    Metrics are medians over exactly the ``log_period`` iterations since the last line. So a line
    does not depend on where the run was resumed. With a period of 1 it holds the losses themselves.

    Raises:
        UserError: ``train.wandb`` is set and W&B is not installed.
    """
    folder, period = str(settings.output_dir), settings.log_period
    wandb = None if settings.wandb is None else import_wandb()

    def make_writers() -> list[EventWriter]:
        writers = [
            MetricPrinter(max_iter, settings.max_minutes),
            JSONWriter(str(Path(folder, "metrics.json")), window_size=period),
            OptionalWriter(TensorboardXWriter(folder, window_size=period)),
        ]
        if wandb is not None:
            writers.append(OptionalWriter(WandbWriter(wandb, settings)))
        return writers

    return WriteMetrics(make_writers, period)


class MetricPrinter(CommonMetricPrinter):
    """detectron2's line for the terminal, with the speed and the time spent waiting for data."""

    class _Logger(logging.LoggerAdapter):
        def process(self, message: str, kwargs):
            latest = get_event_storage().latest()
            if "img_per_s" in latest:
                speed, wait = latest["img_per_s"][0], latest["data_wait"][0]
                message += f"  img/s: {speed:.4g}  data_wait: {wait:.0%}"
            return message, kwargs

    def __init__(self, max_iter: int, max_minutes: float | None = None):
        super().__init__(max_iter)
        self.logger, self.max_minutes = self._Logger(self.logger), max_minutes

    def _get_eta(self, storage) -> str | None:
        if self.max_minutes is None:
            return super()._get_eta(storage)
        left = max(0.0, self.max_minutes - storage.history("minutes_used").latest())
        return str(datetime.timedelta(seconds=int(60 * left)))

    def end_at(self, iteration: int) -> None:
        """Tells that the run is over: detectron2 writes once more, and there is nothing new."""
        self._max_iter = iteration


class OptionalWriter(EventWriter):
    """Forwards to a writer until the writer fails: a broken display must not end training."""

    def __init__(self, writer: EventWriter):
        self._writer: EventWriter | None = writer

    def write(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write()
        except Exception as error:  # not installed, another version's protobuf, no network, ...
            name = type(self._writer).__name__
            logger.warning("%s is off from here on: %s: %s", name, type(error).__name__, error)
            self._writer = None

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._writer.close()


def import_wandb():
    """The module ``wandb``.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"train.wandb is set, but Weights & Biases cannot be imported ({error}): "
            "pip install wandb, or train.wandb=null"
        ) from None


class WandbWriter(EventWriter):
    """Scalars to Weights & Biases; a resumed training run continues the same W&B run.

    Args:
        wandb: The module.
        settings: The ``train`` section of a config, which W&B shows. Its ``wandb`` holds arguments
            of ``wandb.init``: ``project``, ``name``, ``entity``, ``mode``, ...
    """

    def __init__(self, wandb, settings: RunSettings):
        self._last_write = -1
        self._window_size = settings.log_period
        config = dataclasses.asdict(settings)
        file = Path(settings.output_dir, WANDB_RUN_FILE)
        options = {
            "dir": str(settings.output_dir),
            "id": file.read_text().strip() if file.is_file() else None,
            "resume": "allow",
            "config": config,
        }
        self._run = wandb.init(**options | config["wandb"])
        file.write_text(self._run.id)
        # W&B's own step can only rise, but a resumed run may start some iterations earlier.
        self._run.define_metric("*", step_metric="iteration")

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = {}
        storage = get_event_storage()
        for name, (value, iteration) in storage.latest_with_smoothing_hint(
            self._window_size
        ).items():
            if iteration > self._last_write:
                lines.setdefault(iteration, {"iteration": iteration})[name] = value
        for iteration in sorted(lines):
            self._run.log(lines[iteration])
            self._last_write = iteration

    def close(self) -> None:
        self._run.finish()


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a ``metrics.json``; after a resume, the later line of an iteration counts.

    A line that a crash or a full disk has cut off is left out.
    """
    if not Path(path).is_file():
        return []
    by_iteration = {}
    for line in Path(path).read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            metrics = json.loads(line)
            by_iteration[metrics["iteration"]] = metrics
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def report_results(results: dict, output_dir: Path) -> None:
    """Prints results and writes them to ``metrics_test.json``.

    A metric that cannot be computed is null there, such as AP of large objects if there are none.
    """
    if not comm.is_main_process():
        return
    print_csv_format(results)
    text = json.dumps(without_nan(results), indent=2, allow_nan=False) + "\n"
    (output_dir / "metrics_test.json").write_text(text)


def without_nan(results: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Results for JSON, which has no nan: null for a metric that cannot be computed."""
    return {
        task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        for task, metrics in results.items()
    }
