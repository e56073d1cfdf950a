"""What the loss would be for a model that always says the same: the floor to hold a loss against.

On dark or grey images, a constant explains most of the loss: normalised with ImageNet's statistics,
their channels keep fixed offsets, which every patch of the target has.

Shapes: B images, L patches of an image, p patch size.
"""

import logging

import torch
from detectron2.engine import HookBase
from torch import Tensor

from lomar_det.layers import patchify

from ..models.lomar import LoMaR
from ..models.mae import MAE

logger = logging.getLogger(__name__)

NUM_IMAGES = 16  # of a batch, whose patches stand for those of the whole


class LossConstant(HookBase):
    """Puts ``loss_constant`` beside the loss: the loss of the best constant patch, so far.

    Every patch is as likely to be masked as any other, so that all patches of some images serve.
    They are looked at once per line of the log, which costs no time.

    Args:
        model: Says what the targets are.
        period: Iterations between lines of the log.
    """

    def __init__(self, model: LoMaR | MAE, period: int):
        self.model, self.period = model, period
        self.latest: Tensor | None = None  # normalised images (B, 3, height, width)
        self._count = 0
        self._mean = self._square = torch.tensor(0.0)

    def watch(self, images: Tensor) -> None:
        """Takes the images of a forward pass."""
        self.latest = images[:NUM_IMAGES]

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            self.trainer.storage.put_scalar("loss_constant", self.measure(), smoothing_hint=False)

    def state_dict(self) -> dict:
        return {"count": self._count, "mean": self._mean, "square": self._square}

    def load_state_dict(self, state_dict: dict) -> None:
        self._count = state_dict["count"]
        self._mean, self._square = state_dict["mean"], state_dict["square"]

    @torch.no_grad()
    def measure(self) -> float:
        """The mean squared distance of all targets seen so far from their mean."""
        targets = self.model.targets(patchify(self.latest, self.model.patch_size))
        self._count += 1
        share = 1 / self._count
        self._mean = torch.lerp(self._mean.to(targets), targets.mean(dim=(0, 1)), share)
        self._square = torch.lerp(self._square.to(targets), targets.square().mean(), share)
        return float(self._square - self._mean.square().mean())


def log_explained(metrics: list[dict]) -> None:
    """Says how much of what a constant leaves the model explains.

    Args:
        metrics: Lines of a ``metrics.json``; the last one with both figures counts.
    """
    lines = [line for line in metrics if {"total_loss", "loss_constant"} <= set(line)]
    if lines and lines[-1]["loss_constant"] > 0:
        loss, constant = lines[-1]["total_loss"], lines[-1]["loss_constant"]
        explained = 1 - loss / constant
        found = f"explains {explained:.0%} of what it leaves" if explained > 0 else "is still worse"
        text = "Loss %.3g; the best constant patch has %.3g: the model %s"
        logger.info(text, loss, constant, found)
