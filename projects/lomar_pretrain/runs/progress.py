"""What a pretraining run shows of its progress: reconstruction sheets and a kNN probe.

They do not touch the run's random numbers: losses are the same, to the bit, with and without them.
"""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from PIL import Image
from torch import nn

from lomar_det.data.images import load_image
from lomar_det.engine.device import autocast
from lomar_det.engine.setup import Run
from lomar_det.errors import UserError

from ..figures.plots import figure_to_array, reconstruction_figure
from ..figures.reconstruction import open_examples
from ..models.lomar import LoMaR
from ..models.mae import MAE
from .knn import KNNProbe

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 4  # images on the sheet of a run


class EveryEpochs(HookBase):
    """Calls ``work(model, epochs done)`` every ``epochs`` epochs and after the last step.

    The model is the trainer's `eval_model`. Only the main process has ``work``; the others wait.
    """

    def __init__(
        self,
        work: Callable[[nn.Module, float], None] | None,
        epochs: float,
        iters_per_epoch: int,
    ):
        self.work, self.iters_per_epoch = work, iters_per_epoch
        self.period = max(1, round(epochs * iters_per_epoch))

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period and done < self.trainer.max_iter:
            return
        if self.work is not None:
            self.work(self.trainer.eval_model, done / self.iters_per_epoch)
        comm.synchronize()


def progress_hooks(
    run: Run,
    model: LoMaR | MAE,
    images: Sequence,
    iters_per_epoch: int,
    num_workers: int,
    open_image: Callable[..., Image.Image] = load_image,
) -> list[HookBase]:
    """The hooks that a run's settings ask for; the probe measures the untrained model now.

    Args:
        run: Its settings ``picture_epochs`` and ``probe`` decide.
        model: The model with random weights.
        images: Images of the run; some of them are drawn.
        iters_per_epoch: Steps of an epoch.
        num_workers: Processes that open the probe's images.
        open_image: Opens one of the images for a drawing.

    Raises:
        UserError: the probe's folder is unusable.
    """
    settings, is_main = run.settings, comm.is_main_process()
    hooks: list[HookBase] = [NameTheLimit(num_workers)] if is_main else []
    if settings.picture_epochs:
        sheet = ReconstructionSheet(model, images, run.output_dir, open_image) if is_main else None
        hooks.append(EveryEpochs(sheet, settings.picture_epochs, iters_per_epoch))
    probe = settings.probe
    if probe.path and probe.epochs:
        log = None
        if is_main:
            cast = partial(autocast, run.device, run.dtype)
            limits = probe.k, probe.max_images, probe.batch_size
            knn = KNNProbe(probe.path, model.img_size, *limits, num_workers, cast)
            log = LogProbe(knn, model)
        comm.synchronize()
        hooks.append(EveryEpochs(log, probe.epochs, iters_per_epoch))
    return hooks


class NameTheLimit(HookBase):
    """Says once in a run whether the loader or the model limits the speed, and what to do.

    Args:
        num_workers: Processes that open images.
    """

    after_steps = 60  # the first ones are no measure: workers start, kernels compile
    waiting = 0.2  # share of the time from which on the loader is the limit

    def __init__(self, num_workers: int):
        self.num_workers = num_workers

    def after_step(self) -> None:
        if self.trainer.iter + 1 - self.trainer.start_iter != self.after_steps:
            return
        share = self.trainer.storage.latest()["data_wait"][0]
        if share >= self.waiting:
            logger.warning(
                "The loader is the limit: steps wait for images %.0f %% of the time. Raise "
                "data.num_workers (%d; this machine has %d cores), pack the images into shards "
                "(tools/make_shards.py), or use them better: model.num_windows takes more windows "
                "of each opened image",
                100 * share,
                self.num_workers,
                os.cpu_count(),
            )
        else:
            logger.info(
                "The model is the limit: steps wait for images %.0f %% of the time. "
                "train.compile=True, train.precision=bf16 or more GPUs make it faster",
                100 * share,
            )


class ReconstructionSheet:
    """Draws reconstructions of the same windows of the same images each time.

    Writes ``pictures/reconstruction_EPOCH.png``, copies the newest to ``reconstruction.png`` and
    hands it to TensorBoard. A failure to read or write is a warning and never ends a run.
    """

    def __init__(
        self,
        model: LoMaR | MAE,
        images: Sequence,
        output_dir: Path,
        open_image: Callable[..., Image.Image] = load_image,
    ):
        self.output_dir = output_dir
        self.examples = open_examples(images, NUM_EXAMPLES, model, open_image)

    def __call__(self, model: LoMaR | MAE, epoch: float) -> None:
        if not self.examples:
            logger.warning("No reconstruction sheet: none of the images tried could be read")
            return
        figure = reconstruction_figure(model, self.examples, title=f"epoch {epoch:g}")
        name = f"{epoch:04.0f}" if epoch == round(epoch) else f"{epoch:07.2f}"
        try:
            path = self.output_dir / "pictures" / f"reconstruction_{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
            shutil.copyfile(path, self.output_dir / "reconstruction.png")
        except OSError as error:
            logger.warning("The reconstruction sheet could not be written: %s", error)
        get_event_storage().put_image("reconstruction", figure_to_array(figure))


class LogProbe:
    """Logs kNN accuracy beside that of random weights and that of chance."""

    def __init__(self, probe: KNNProbe, model: LoMaR | MAE):
        self.probe = probe
        self.random_init = probe.measure(model)
        logger.info(
            "kNN probe on %s, %d images of %d classes: top-1 %.1f %% at random initialisation, "
            "%.1f %% by chance (always the largest class)",
            probe.path,
            len(probe.images),
            probe.num_classes,
            self.random_init,
            probe.chance,
        )

    def __call__(self, model: LoMaR | MAE, epoch: float) -> None:
        try:
            top1 = self.probe.measure(model)
        except UserError as error:  # images have disappeared since the run began
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
