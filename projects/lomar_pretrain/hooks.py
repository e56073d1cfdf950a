"""What a pretraining run does besides its steps: reconstruction sheets and the kNN probe.

Neither touches the run's random numbers: losses are the same, to the bit, with and without them.
"""

import functools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from omegaconf import DictConfig

from lomar_det.engine import autocast, resolve_precision
from lomar_det.errors import UserError

from .lomar import LoMaR
from .mae import MAE
from .pictures import figure_to_array, reconstruction_figure, save_figure
from .probe import KNNProbe
from .reconstruction import open_examples

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 4  # pictures on the sheet of a run


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
    cfg: DictConfig, model: LoMaR | MAE, paths: list[Path], iters_per_epoch: int
) -> list[HookBase]:
    """The hooks that a config asks for; the probe measures the model as it is now, untrained.

    Args:
        cfg: The config of the run; reads ``train.picture_epochs`` and ``train.probe``.
        model: The model itself, without a wrapper, freshly initialised.
        paths: Pictures of the run, of which some are drawn.
        iters_per_epoch: Steps of an epoch.

    Raises:
        UserError: a setting is out of range, or the probe's folder is unusable.
    """
    settings, is_main = cfg.train, comm.is_main_process()
    hooks = []
    if _check_epochs("picture_epochs", settings.picture_epochs):
        sheet = ReconstructionSheet(model, paths, settings.output_dir) if is_main else None
        hooks.append(EveryEpochs(sheet, settings.picture_epochs, iters_per_epoch))
    probe = settings.probe
    if probe.path and _check_epochs("probe.epochs", probe.epochs):
        log = LogProbe(_build_probe(cfg, model)) if is_main else None
        comm.synchronize()
        hooks.append(EveryEpochs(log, probe.epochs, iters_per_epoch))
    return hooks


def _check_epochs(name: str, value) -> bool:
    if not isinstance(value, int | float) or value < 0:
        raise UserError(f"train.{name}={value} must be a number of epochs, 0 for never")
    return value > 0


def _build_probe(cfg: DictConfig, model: LoMaR | MAE) -> KNNProbe:
    device, probe = torch.device(cfg.train.device), cfg.train.probe
    precision = functools.partial(autocast, device, resolve_precision(cfg.train.precision, device))
    return KNNProbe(
        model,
        probe.path,
        probe.k,
        probe.max_images,
        probe.batch_size,
        cfg.data.num_workers,
        precision,
    )


class ReconstructionSheet:
    """Draws the same windows of the same pictures each time, so that one sees progress.

    Writes ``pictures/reconstruction_EPOCH.png``, the newest also as ``reconstruction.png``, and
    hands it to TensorBoard. What cannot be read or written is a warning: no picture ends a run.
    """

    def __init__(self, model: LoMaR | MAE, paths: list[Path], output_dir: str | Path):
        self.model, self.output_dir = model, Path(output_dir)
        self.examples = open_examples(paths, NUM_EXAMPLES, model)

    def __call__(self, epoch: float) -> None:
        if not self.examples:
            logger.warning("No reconstruction sheet: none of the pictures tried could be read")
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
            "kNN probe on %s, %d pictures of %d classes: top-1 %.1f %% at random initialisation, "
            "%.1f %% by chance (always the largest class)",
            probe.path,
            len(probe.chosen),
            len(probe.folders.classes),
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
