"""A linear classifier on a frozen encoder: how separable are its features?

Shapes: B images, C embed_dim, K classes.
"""

import torch
from torch import Tensor, nn

from .encoder import VisionTransformerEncoder


class LinearProbe(nn.Module):
    """A linear layer on frozen features, normalised by a BatchNorm without weights (MAE, app. A).

    The features are the mean of the patch tokens after the encoder's final norm.

    Args:
        encoder: Frozen, always in evaluation mode.
        num_classes: Outputs, K.
    """

    def __init__(self, encoder: VisionTransformerEncoder, num_classes: int):
        super().__init__()
        encoder.init_weights()
        self.encoder = encoder.requires_grad_(False)
        self.bn = nn.BatchNorm1d(encoder.embed_dim, affine=False, eps=1e-6)
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    @property
    def img_size(self) -> tuple[int, int]:
        return self.encoder.img_size

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> (B, C)."""
        return self.encoder.patch_features(images).mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> logits (B, K)."""
        return self.head(self.bn(self.features(images).float()))
