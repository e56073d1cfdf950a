"""Windows of large images that show nothing: how many were drawn again."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

logger = logging.getLogger(__name__)


class CountEmpty(HookBase):
    """Says at the end of a run which share of the windows looked at was empty.

    `lomar_pretrain.data.native_scale.ViewsAtScale` draws empty ones again.
    """

    def __init__(self):
        self._seen = self._redrawn = 0

    def watch(self, views: Tensor, redrawn: Tensor) -> None:
        """Takes the views (B, M, 3, h, w) of a forward pass, and the redraws (B,) of each image."""
        self._redrawn += int(redrawn.sum())
        self._seen += views.shape[0] * views.shape[1] + int(redrawn.sum())

    def after_train(self) -> None:
        if self._seen and comm.is_main_process():
            logger.info(
                "%.1f %% of the %d windows looked at were empty, and drawn again (data.max_empty)",
                100 * self._redrawn / self._seen,
                self._seen,
            )
