"""Hooks for detectron2's trainer that both stages use."""

import logging
import signal
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.engine.hooks import (
    IterationTimer,
    LRScheduler,
    PeriodicCheckpointer,
    PeriodicWriter,
)
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig

from ..stream import get_rank, mix_seed, seed_everything

logger = logging.getLogger(__name__)


class SeedEachStep(HookBase):
    """Step i draws from a generator seeded with (seed, i, rank).

    So a resumed run needs no generator states: proposals and stochastic depth of a step are the
    same wherever the run was started.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        seed_everything(mix_seed(self.seed, self.trainer.iter, get_rank()))


class Throughput(HookBase):
    """Images per second of the whole run, as the metric ``img_per_s``."""

    def __init__(self, total_batch_size: int):
        self.total_batch_size = total_batch_size

    def after_step(self) -> None:
        history = self.trainer.storage.histories().get("time")  # written by IterationTimer
        if history is not None:
            speed = self.total_batch_size / max(history.latest(), 1e-9)
            self.trainer.storage.put_scalar("img_per_s", speed)


def writer_hook(output_dir: str | Path, max_iter: int, period: int) -> PeriodicWriter:
    """detectron2's usual writers: terminal, ``metrics.json``, TensorBoard.

    Metrics are medians over exactly the ``period`` iterations since the last line, so a line does
    not depend on where the run was resumed, and with a period of 1 it holds the losses themselves.
    """
    writers = [
        CommonMetricPrinter(max_iter),
        JSONWriter(str(Path(output_dir, "metrics.json")), window_size=period),
        TensorboardXWriter(str(output_dir), window_size=period),
    ]
    return PeriodicWriter(writers, period=period)


class StopOnSignal(HookBase):
    """SIGTERM, SIGUSR1 and Ctrl-C write a checkpoint after the current step and end the run.

    The exit code is 128 plus the signal's number (143, 138, 130). A second Ctrl-C ends at once.
    """

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, checkpointer):
        self.checkpointer = checkpointer
        self.received: int | None = None
        self._previous = {}

    def before_train(self) -> None:
        for number in self.signals:
            self._previous[number] = signal.signal(number, self._receive)

    def after_train(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, _frame) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        logger.warning(
            "%s received: saving a checkpoint after this step", signal.Signals(number).name
        )

    def after_step(self) -> None:
        number = self._agreed_signal()
        if number is None:
            return
        done = self.trainer.iter + 1
        if done < self.trainer.max_iter:
            self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            comm.synchronize()  # the launcher ends all processes as soon as one has ended
            logger.warning("Stopped after iteration %d; continue with --resume", done)
            raise SystemExit(128 + number)

    def _agreed_signal(self) -> int | None:
        """The signal that any process received; processes compare notes every ten steps."""
        if comm.get_world_size() == 1:
            return self.received
        if self.trainer.iter % 10:
            return None
        received = [number for number in comm.all_gather(self.received) if number is not None]
        return received[0] if received else None


def standard_hooks(
    settings: DictConfig,
    checkpointer,
    schedule: ParamScheduler,
    max_iter: int,
    total_batch_size: int,
    checkpoint_period: int,
    max_to_keep: int,
    *evaluation: HookBase,
) -> list[HookBase | None]:
    """What every training run does besides its steps, in the order in which it must happen.

    Args:
        settings: The ``train`` section of a config: ``seed``, ``output_dir``, ``log_period``.
        checkpointer: Saves periodically, and when a signal ends the run.
        schedule: Learning rate over the run.
        max_iter: Length of the run.
        total_batch_size: Images per step, for the speed.
        checkpoint_period: Iterations between checkpoints, of which ``max_to_keep`` stay.
        evaluation: Run after the checkpoint and before the writers, which report their results.
    """
    is_main = comm.is_main_process()
    save = PeriodicCheckpointer(
        checkpointer, checkpoint_period, max_to_keep=max_to_keep, file_prefix="model"
    )
    return [
        SeedEachStep(settings.seed),
        IterationTimer(),
        Throughput(total_batch_size),
        LRScheduler(scheduler=schedule),
        save if is_main else None,
        *evaluation,
        writer_hook(settings.output_dir, max_iter, settings.log_period) if is_main else None,
        StopOnSignal(checkpointer),
    ]
