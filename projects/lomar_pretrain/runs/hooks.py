"""What a pretraining run does besides its steps: bad images, reconstruction sheets, kNN probe.

None of them touches the run's random numbers: losses are the same, to the bit, with and without.
"""

import functools
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from omegaconf import DictConfig
from torch import Tensor, nn

from lomar_det.engine import Checkpointer, autocast_as_set
from lomar_det.errors import UserError
from lomar_det.figures import save_figure

from ..data.unreadable import REMEDY, BadImage, BadImageFile
from ..figures.plots import figure_to_array, reconstruction_figure
from ..figures.reconstruction import open_examples
from ..models.lomar import LoMaR
from ..models.mae import MAE
from .knn import KNNProbe

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 4  # images on the sheet of a run


class EveryEpochs(HookBase):
    """Calls ``work(epochs done)`` every so many epochs and after the last step.

    Only the main process works; the others wait for it.
    """

    def __init__(self, work: Callable[[float], None] | None, epochs: float, iters_per_epoch: int):
        self.work, self.iters_per_epoch = work, iters_per_epoch
        self.period = max(1, round(epochs * iters_per_epoch))

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period and done < self.trainer.max_iter:
            return
        if self.work is not None:
            self.work(done / self.iters_per_epoch)
        comm.synchronize()


def evaluation_hooks(
    cfg: DictConfig, model: LoMaR | MAE, paths: Sequence, iters_per_epoch: int
) -> list[HookBase]:
    """The hooks that a config asks for; the probe measures the model as it is now, untrained.

    Args:
        cfg: The config of the run; reads ``train.picture_epochs`` and ``train.probe``.
        model: The model itself, without a wrapper, freshly initialised.
        paths: Images of the run, of which some are drawn.
        iters_per_epoch: Steps of an epoch.

    Raises:
        UserError: the probe's folder is unusable.
    """
    settings, is_main = cfg.train, comm.is_main_process()
    hooks = []
    if settings.picture_epochs:
        sheet = ReconstructionSheet(model, paths, settings.output_dir) if is_main else None
        hooks.append(EveryEpochs(sheet, settings.picture_epochs, iters_per_epoch))
    probe = settings.probe
    if probe.path and probe.epochs:
        log = LogProbe(_build_probe(cfg, model)) if is_main else None
        comm.synchronize()
        hooks.append(EveryEpochs(log, probe.epochs, iters_per_epoch))
    return hooks


def _build_probe(cfg: DictConfig, model: LoMaR | MAE) -> KNNProbe:
    probe = cfg.train.probe
    return KNNProbe(
        model,
        probe.path,
        probe.k,
        probe.max_images,
        probe.batch_size,
        cfg.data.num_workers,
        functools.partial(autocast_as_set, cfg.train),
    )


class ReconstructionSheet:
    """Draws the same windows of the same images each time, so that one sees progress.

    Writes ``pictures/reconstruction_EPOCH.png``, the newest also as ``reconstruction.png``, and
    hands it to TensorBoard. What cannot be read or written is a warning: no image ends a run.
    """

    def __init__(self, model: LoMaR | MAE, paths: Sequence, output_dir: str | Path):
        self.model, self.output_dir = model, Path(output_dir)
        self.examples = open_examples(paths, NUM_EXAMPLES, model)

    def __call__(self, epoch: float) -> None:
        if not self.examples:
            logger.warning("No reconstruction sheet: none of the images tried could be read")
            return
        figure = reconstruction_figure(self.model, self.examples, title=f"epoch {epoch:g}")
        name = f"{epoch:04.0f}" if epoch == round(epoch) else f"{epoch:07.2f}"
        try:
            path = self.output_dir / "pictures" / f"reconstruction_{name}.png"
            save_figure(figure, path)
            shutil.copyfile(path, self.output_dir / "reconstruction.png")
        except OSError as error:
            logger.warning("The reconstruction sheet could not be written: %s", error)
        get_event_storage().put_image("reconstruction", figure_to_array(figure))


class LogProbe:
    """Logs a kNN probe beside what it measured at random initialisation and beside chance."""

    def __init__(self, probe: KNNProbe):
        self.probe = probe
        self.random_init = probe.measure()
        logger.info(
            "kNN probe on %s, %d images of %d classes: top-1 %.1f %% at random initialisation, "
            "%.1f %% by chance (always the largest class)",
            probe.path,
            len(probe.images),
            probe.num_classes,
            self.random_init,
            probe.chance,
        )

    def __call__(self, epoch: float) -> None:
        try:
            top1 = self.probe.measure()
        except UserError as error:  # the folder has gone since the run began
            logger.warning("No kNN accuracy after epoch %g: %s", epoch, error)
            return
        logger.info(
            "kNN after epoch %g: top-1 %.1f %% (random initialisation %.1f %%, chance %.1f %%)",
            epoch,
            top1,
            self.random_init,
            self.probe.chance,
        )
        get_event_storage().put_scalars(
            smoothing_hint=False,
            knn_top1=top1,
            knn_top1_random_init=self.random_init,
            knn_chance=self.probe.chance,
        )


def bad_images_path(cfg: DictConfig) -> Path:
    """The run's list of unreadable images, see `BadImageFile`."""
    return Path(cfg.train.output_dir, "bad_images.txt")


class CountBadImages(HookBase):
    """Lists and reports unreadable images, and ends the run when there are too many of them.

    That is judged once 1000 images, or all of a smaller set, have been seen since the run was
    started or resumed, and not for fewer than ten, unless none at all may be unreadable. A
    checkpoint is written before.

    Args:
        cfg: The run's; ``data.max_bad_fraction`` is the share of the images seen that may be
            unreadable; with 0 the first one ends the run.
        num_images: Images there are.
        checkpointer: Saves before the run is ended.
        resume: Go on with the list of the run that is continued.
    """

    min_bad, min_seen, seconds = 10, 1000, 60.0

    def __init__(self, cfg: DictConfig, num_images: int, checkpointer: Checkpointer, resume: bool):
        self.path, self.max_fraction = bad_images_path(cfg), cfg.data.max_bad_fraction
        self.num_images, self.total_batch_size = num_images, cfg.train.total_batch_size
        self.checkpointer = checkpointer
        self.file = BadImageFile(self.path, resume) if comm.is_main_process() else None
        self._pending: list[BadImage] = []  # of this process, not yet shared
        self._unreported: list[BadImage] = []
        self._found: set[str] = set()
        self._num_replaced = 0
        self._due = 0.0

    def add(self, failed: list[BadImage]) -> None:
        """Takes what `collate_images` says of a batch."""
        self._pending += failed

    def watch(self, compute_losses: Callable[[nn.Module, Any], dict[str, Tensor]]):
        """The same losses, of the batches of `collate_images`, after which it looks."""

        def compute(model: nn.Module, batch: tuple[Any, list[BadImage]]) -> dict[str, Tensor]:
            samples, failed = batch
            self.add(failed)
            return compute_losses(model, samples)

        return compute

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
        self.save()
        raise UserError(
            f"{bad} of the {seen} images seen so far cannot be read, more than "
            f"data.max_bad_fraction={self.max_fraction:g}; see the reasons in {self.path}. {REMEDY}"
        )

    def save(self) -> None:
        """Before an error that ends the run in all processes: a checkpoint of this iteration."""
        self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
        comm.synchronize()  # the launcher ends all processes as soon as one has ended
