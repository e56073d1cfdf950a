"""The best model so far, kept beside the checkpoints."""

import logging
import math
from pathlib import Path

import torch
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from .checkpointer import Checkpointer

logger = logging.getLogger(__name__)


class BestModel:
    """Keeps ``model_best.pth``: the evaluated weights with the highest value of a metric so far.

    Unlike with detectron2's `BestCheckpointer`, the value so far survives a resume, as it is in the
    file, and the file is never taken for the one to resume from.

    Args:
        checkpointer: Writes the file.
        metric: Its name as in ``metrics.json``, such as ``bbox/AP``; None or "" keeps nothing.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str | None):
        self.checkpointer, self.metric = checkpointer, metric

    def update(self, results: dict, model: nn.Module, iterations: int) -> None:
        """Looks at the results of an evaluation of ``model``, after so many iterations."""
        if not self.metric or not results or not comm.is_main_process():
            return
        values = flatten_results_dict(results)
        if self.metric not in values:
            logger.warning(
                "no model_best.pth: best_metric=%s, but the evaluation gives %s",
                self.metric,
                ", ".join(values),
            )
            return
        value, best = float(values[self.metric]), self._best_so_far()
        if not math.isfinite(value) or (best is not None and value <= best):
            return
        logger.info("Best %s so far: %.4g", self.metric, value)
        meta = {"metric": self.metric, "value": value, "iterations": iterations}
        self.checkpointer.save_weights("model_best", model, meta)

    def _best_so_far(self) -> float | None:
        path = Path(self.checkpointer.save_dir, "model_best.pth")
        if not path.is_file():
            return None
        try:
            meta = torch.load(path, mmap=True, weights_only=True)["meta"]
        except Exception as error:  # whatever a damaged file can fail with
            logger.warning("%s cannot be read and will be replaced: %s", path, error)
            return None
        return meta["value"] if meta["metric"] == self.metric else None
