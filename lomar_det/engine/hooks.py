"""Hooks for detectron2's trainer that all stages use."""

import logging
import signal
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.engine.hooks import IterationTimer, LRScheduler
from detectron2.utils import comm
from fvcore.common.param_scheduler import ParamScheduler

from ..data.stream import get_rank, mix_seed, seed_everything
from ..errors import UserError
from .checkpointer import Checkpointer
from .schedules import Plan
from .setup import Run
from .writers import writer_hook

logger = logging.getLogger(__name__)


class SeedEachStep(HookBase):
    """Seeds the global generators before step i with (seed, i, rank).

    A resumed run therefore needs no generator states: proposals and stochastic depth of a step do
    not depend on where the run was started.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def before_step(self) -> None:
        seed_everything(mix_seed(self.seed, self.trainer.iter, get_rank()))


class Throughput(HookBase):
    """Images per second and the share of time spent waiting for data, over the last steps.

    The metrics are ``img_per_s`` and ``data_wait``. They are means: a loader that cannot keep up
    stalls every few steps, and a median would hide that.

    Args:
        total_batch_size: Images per step.
        window: Steps over which to average.
    """

    def __init__(self, total_batch_size: int, window: int):
        self.total_batch_size = total_batch_size
        self.steps: deque[tuple[float, float]] = deque(maxlen=window)  # seconds, waiting

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        if "time" in latest:  # IterationTimer leaves out the first steps
            self.steps.append((latest["time"][0], latest["data_time"][0]))
            seconds, waiting = map(sum, zip(*self.steps, strict=True))
            self.trainer.storage.put_scalars(
                img_per_s=self.total_batch_size * len(self.steps) / seconds,
                data_wait=min(waiting / seconds, 1.0),
                smoothing_hint=False,
            )


class SaveCheckpoints(HookBase):
    """Writes checkpoints periodically; keeps the newest ones and all milestones.

    Unlike detectron2's `PeriodicCheckpointer`, the hook counts the files in the folder and not
    those that it wrote. So it also deletes checkpoints from before a resume or from a signal.

    Args:
        checkpointer: Writes the files. Only the main process may have this hook: it deletes files.
        period: Iterations between checkpoints.
        max_to_keep: How many stay, besides milestones and ``model_final.pth``; None keeps all.
        milestone_period: Iterations between checkpoints that are never deleted.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        period: int,
        max_to_keep: int | None,
        milestone_period: int | None = None,
    ):
        self.checkpointer, self.max_to_keep = checkpointer, max_to_keep
        self.period, self.milestone_period = period, milestone_period

    def before_train(self) -> None:
        for path in Path(self.checkpointer.save_dir).glob("model_*.pth.tmp"):
            path.unlink()  # a run was killed while it wrote this file

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        name = f"model_{self.trainer.iter:07d}"
        if done == self.trainer.max_iter:
            name = "model_final"
            if self.trainer.ema is not None:
                meta = {"ema_decay": self.trainer.ema.decay, "iterations": done}
                self.checkpointer.save_weights("model_final_ema", self.trainer.eval_model, meta)
        elif self.milestone_period and done % self.milestone_period == 0:
            name += "_milestone"
        elif not self.period or done % self.period:
            return
        self.checkpointer.save(name, iteration=self.trainer.iter)
        # Sorted by time: a run that resumes from an earlier checkpoint writes smaller numbers.
        numbered = Path(self.checkpointer.save_dir).glob("model_" + "[0-9]" * 7 + ".pth")
        old = sorted(numbered, key=lambda path: (path.stat().st_mtime_ns, path.name))
        for path in old[: -self.max_to_keep] if self.max_to_keep else []:
            path.unlink()


class StopOnDivergence(HookBase):
    """Ends the run when too many steps in a row were skipped for non-finite losses or gradients.

    Args:
        checkpointer: Knows the last good checkpoint.
        max_skipped_steps: Skipped steps in a row that do not end the run.
    """

    def __init__(self, checkpointer: Checkpointer, max_skipped_steps: int):
        self.checkpointer, self.max_skipped_steps = checkpointer, max_skipped_steps

    def after_step(self) -> None:
        skipped = self.trainer.skipped_in_a_row
        if skipped <= self.max_skipped_steps:
            return
        last = self.checkpointer.get_checkpoint_file() or "none yet"
        raise UserError(
            f"training diverged: {skipped} steps in a row, up to iteration {self.trainer.iter}, "
            "had a loss or gradient that is not finite (train.max_skipped_steps="
            f"{self.max_skipped_steps}). None of them changed the weights. Last good checkpoint: "
            f"{last}. Continue from it with --resume and a lower learning rate, "
            "train.clip_grad_norm=1, or train.precision=bf16 or fp32"
        )


class StopOnSignal(HookBase):
    """At SIGTERM, SIGUSR1, SIGHUP or Ctrl-C: finishes the step, writes a checkpoint, ends the run.

    So no work is lost when a scheduler warns before it kills a job (SLURM's ``--signal``, torchrun,
    Kubernetes) or when a connection breaks. A run under ``nohup`` ignores SIGHUP and goes on.

    The exit code is 128 plus the signal's number: 143 for SIGTERM, 138 for SIGUSR1, 129 for SIGHUP,
    130 for Ctrl-C. torchrun turns all of them into 1. A run that gets a signal in its last step
    ends as usual. A second Ctrl-C ends the run at once, without a checkpoint. One of several
    processes must get the signal; every ten steps they ask each other.
    """

    def __init__(self, checkpointer):
        self.checkpointer = checkpointer
        self.received: int | None = None
        self._previous = {}

    def before_train(self) -> None:
        for number in self.signals():
            self._previous[number] = signal.signal(number, self._receive)

    def after_train(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @staticmethod
    def signals() -> list[signal.Signals]:
        """The signals that end a run; under ``nohup``, SIGHUP is none of them."""
        numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            numbers.remove(signal.SIGHUP)
        return numbers

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
            self.checkpointer.save_iteration(self.trainer.iter)
            logger.warning("Stopped after iteration %d; continue with --resume", done)
            raise SystemExit(128 + number)

    def _agreed_signal(self) -> int | None:
        """The signal that any process received; the processes ask each other every ten steps."""
        if comm.get_world_size() == 1:
            return self.received
        if self.trainer.iter % 10:
            return None
        received = [number for number in comm.all_gather(self.received) if number is not None]
        return received[0] if received else None


class Clock(HookBase):
    """Ends a run after some minutes of training; the learning rate follows the share of time used.

    Time counts from the beginning of a step to its end, including the wait for data. Evaluation,
    checkpoints and drawings do not count: runs of equal minutes train equally long, whatever else
    they do. The checkpoint holds the time used. Of several processes, the main one has the clock.

    Args:
        minutes: The length of the run.
        schedule: Factor of the learning rates over the share of time used.
    """

    def __init__(self, minutes: float, schedule: ParamScheduler):
        self.limit, self.schedule = 60 * minutes, schedule
        self.seconds, self.is_last_step = 0.0, False
        self._lrs: list[float] = []
        self._start = 0.0

    @property
    def is_over(self) -> bool:
        """Whether a resumed run has used all its minutes; a higher limit lets it go on."""
        return self.is_last_step and self.seconds >= self.limit

    def before_train(self) -> None:
        for group in self.trainer.optimizer.param_groups:
            self._lrs.append(group.setdefault("initial_lr", group["lr"]))

    def before_step(self) -> None:
        if comm.get_world_size() > 1:
            self.seconds = comm.all_gather(self.seconds)[0]
        self.is_last_step = self.seconds >= self.limit
        if self.is_last_step:
            self.trainer.max_iter = self.trainer.iter + 1
        factor = self.schedule(min(self.seconds / self.limit, 1.0))
        for group, lr in zip(self.trainer.optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * factor
        self._start = time.perf_counter()

    def after_step(self) -> None:
        self.seconds += time.perf_counter() - self._start
        self.trainer.storage.put_scalars(
            lr=self.trainer.optimizer.param_groups[0]["lr"],
            minutes_used=self.seconds / 60,
            smoothing_hint=False,
        )

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "is_last_step": self.is_last_step}

    def load_state_dict(self, state_dict: dict) -> None:
        self.seconds, self.is_last_step = state_dict["seconds"], state_dict["is_last_step"]


def standard_hooks(
    run: Run,
    plan: Plan,
    checkpointer: Checkpointer,
    clock: Clock | None = None,
    others: Sequence[HookBase] = (),
) -> list[HookBase | None]:
    """The hooks of every training run, in the order in which they must run.

    Args:
        run: The run.
        plan: How long it is, and how often it saves.
        checkpointer: Saves periodically, and when a signal ends the run.
        clock: For a run whose length is in minutes.
        others: Hooks that run after the checkpoint and before the writers, which report metrics.
    """
    is_main, settings = comm.is_main_process(), run.settings
    save = SaveCheckpoints(
        checkpointer, plan.checkpoint_period, plan.max_to_keep, plan.milestone_period
    )
    return [
        SeedEachStep(settings.seed),
        IterationTimer(),
        Throughput(run.total_batch_size, settings.log_period),
        clock or LRScheduler(scheduler=plan.schedule),
        StopOnDivergence(checkpointer, settings.max_skipped_steps),
        save if is_main else None,
        *others,
        writer_hook(settings, plan.max_iter) if is_main else None,
        StopOnSignal(checkpointer),
    ]
