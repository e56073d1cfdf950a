"""What an exported file computes, against the model."""

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor


def noise(model: GeneralizedRCNN, batch: int, height: int, width: int) -> Tensor:
    """Normalised images of noise, (batch, 3, height, width), always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, height, width, generator=generator).to(model.device)


def difference(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Largest difference over the largest value, of the worst output.

    Args:
        pairs: What was expected and what came.

    Returns:
        Infinity for other shapes, and for what is not finite.
    """
    worst = 0.0
    for expected, found in pairs:
        if expected.shape != found.shape or not found.isfinite().all():
            return float("inf")
        if expected.numel():
            expected, found = expected.double().cpu(), found.double().cpu()
            scale = expected.abs().max().clamp(min=1e-9)
            worst = max(worst, ((expected - found).abs().max() / scale).item())
    return worst
