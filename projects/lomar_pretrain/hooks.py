"""What pretraining adds to the trainer's hooks. Needs detectron2."""

import logging
import time
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from lomar_det.engine import Checkpointer
from lomar_det.errors import UserError

from .bad_images import BadImage, BadImageFile

logger = logging.getLogger(__name__)


class CountBadImages(HookBase):
    """Lists and reports unreadable pictures, and ends the run when there are too many of them.

    That is judged once 1000 pictures, or all of a smaller set, have been seen since the run was
    started or resumed, and not for fewer than ten, unless none at all may be unreadable. A
    checkpoint is written before.

    Args:
        path: The list to write, see `BadImageFile`.
        max_fraction: Share of the pictures seen that may be unreadable; with 0 the first one ends
            the run.
        num_images: Pictures there are.
        total_batch_size: Pictures in each step, over all processes.
        checkpointer: Saves before the run is ended.
        resume: Go on with the list of the run that is continued.
    """

    min_bad, min_seen, seconds = 10, 1000, 60.0

    def __init__(
        self,
        path: Path,
        max_fraction: float,
        num_images: int,
        total_batch_size: int,
        checkpointer: Checkpointer,
        resume: bool,
    ):
        if not (isinstance(max_fraction, int | float) and 0 <= max_fraction <= 1):
            raise UserError(f"data.max_bad_fraction={max_fraction} must lie between 0 and 1")
        self.path, self.max_fraction = path, max_fraction
        self.num_images, self.total_batch_size = num_images, total_batch_size
        self.checkpointer = checkpointer
        self.file = BadImageFile(path, resume) if comm.is_main_process() else None
        self._pending: list[BadImage] = []  # of this process, not yet shared
        self._unreported: list[BadImage] = []
        self._found: set[str] = set()
        self._num_replaced = 0
        self._due = 0.0

    def add(self, failed: list[BadImage]) -> None:
        """Takes what `collate_images` says of a batch."""
        self._pending += failed

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        # Every ten steps, the same ones in which processes agree on a signal to stop.
        if comm.get_world_size() > 1 and self.trainer.iter % 10 and done < self.trainer.max_iter:
            return
        failed = [bad for some in comm.all_gather(self._pending) for bad in some]
        self._pending = []
        self._num_replaced += len(failed)
        self._found |= {name for name, _ in failed}
        if self.file is not None:
            self._unreported += self.file.add(failed)
            self._report()
        self._stop_if_too_many(done)

    def after_train(self) -> None:
        if self.file:
            logger.warning(
                "%d unreadable pictures were replaced by others; they are listed in %s",
                len(self.file),
                self.file.path,
            )

    def _report(self) -> None:
        if not self._unreported or time.monotonic() < self._due:
            return
        name, reason = self._unreported[0]
        more = len(self._unreported) - 1
        logger.warning(
            "Unreadable, replaced by another picture: %s (%s)%s; listed in %s",
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
        self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
        comm.synchronize()  # the launcher ends all processes as soon as one has ended
        raise UserError(
            f"{bad} of the {seen} pictures seen so far cannot be read, more than "
            f"data.max_bad_fraction={self.max_fraction:g}; see the reasons in {self.path}. Repair "
            "or remove them, or raise data.max_bad_fraction, then continue with --resume"
        )
