"""Unreadable images of a run: listed and reported; too many of them end the run."""

import logging
import time
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from lomar_det.data.stream import Unreadable
from lomar_det.engine.setup import Run
from lomar_det.errors import UserError

from ..data.unreadable import REMEDY, BadImageFile

logger = logging.getLogger(__name__)


def bad_images_path(run: Run) -> Path:
    """The path of the run's list of unreadable images, see `BadImageFile`."""
    return run.output_dir / "bad_images.txt"


class CountBadImages(HookBase):
    """Lists and reports unreadable images, and ends the run when there are too many of them.

    There can be too many once the run has seen 1000 images, or all of a smaller set, since it was
    started or resumed, and ten of them are unreadable. A checkpoint is written before the run ends.

    Args:
        run: The run.
        max_fraction: ``data.max_bad_fraction``, the share of the images seen that may be
            unreadable. With 0, the first unreadable image ends the run.
        num_images: Number of images in the data set.
    """

    min_bad, min_seen, seconds = 10, 1000, 60.0

    def __init__(self, run: Run, max_fraction: float, num_images: int):
        self.path, self.max_fraction = bad_images_path(run), max_fraction
        self.num_images, self.total_batch_size = num_images, run.total_batch_size
        self.file = BadImageFile(self.path, run.resume) if comm.is_main_process() else None
        self._unreported: list[Unreadable] = []
        self._found: set[str] = set()
        self._num_replaced = 0
        self._due = 0.0

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        # Every ten steps, in the same steps as `StopOnSignal`.
        if comm.get_world_size() > 1 and self.trainer.iter % 10 and done < self.trainer.max_iter:
            return
        failed = [bad for some in comm.all_gather(self.trainer.unreadable) for bad in some]
        self.trainer.unreadable = []
        self._num_replaced += len(failed)
        self._found |= {name for name, _ in failed}
        if self.file is not None:
            self._unreported += self.file.add(failed)
            self._report()
        self._stop_if_too_many(done)

    def after_train(self) -> None:
        if self.file:
            logger.warning(
                "Unreadable images, replaced by others: %d; they are listed in %s",
                len(self.file),
                self.file.path,
            )

    def _report(self) -> None:
        if not self._unreported or time.monotonic() < self._due:
            return
        name, reason = self._unreported[0]
        more = len(self._unreported) - 1
        logger.warning(
            "Unreadable, replaced by another image: %s (%s)%s; listed in %s",
            name,
            reason,
            f" and {more} more" if more else "",
            self.file.path,
        )
        self._unreported, self._due = [], time.monotonic() + self.seconds

    def _stop_if_too_many(self, done: int) -> None:
        seen = (done - self.trainer.start_iter) * self.total_batch_size + self._num_replaced
        seen, bad = min(seen, self.num_images), len(self._found)
        enough = bad >= self.min_bad and seen >= min(self.min_seen, self.num_images)
        if not (enough or self.max_fraction == 0) or bad <= self.max_fraction * seen:
            return
        self.trainer.checkpointer.save_iteration(self.trainer.iter)
        raise UserError(
            f"{bad} of the {seen} images seen so far cannot be read, more than "
            f"data.max_bad_fraction={self.max_fraction:g}; see the reasons in {self.path}. {REMEDY}"
        )
