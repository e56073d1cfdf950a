"""detectron2's layer normalisation over channels, by one operation instead of nine.

Shapes: B images or regions, C channels, H x W their size.
"""

import torch.nn.functional as F
from detectron2.layers.batch_norm import LayerNorm
from torch import Tensor, nn


class ChannelLayerNorm(LayerNorm):
    """The same numbers as detectron2's ``LN``, with the same parameters.

    detectron2 writes the formula out step by step. Every step reads and writes the whole feature
    and is kept for backward. The result here has its channels last in memory, which makes
    convolutions fast; only ROIAlign copies it to another layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def fuse_norms(model: nn.Module) -> nn.Module:
    """Makes every ``LN`` that detectron2 built into ``model`` a `ChannelLayerNorm`, in place."""
    for module in model.modules():
        if type(module) is LayerNorm:
            module.__class__ = ChannelLayerNorm  # parameters and state stay the very same
    return model
