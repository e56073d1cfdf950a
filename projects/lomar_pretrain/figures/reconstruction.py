"""The patches that a model does not see, reconstructed and put back into the image.

Shapes: L = H * W patches of an image, M windows, K patches of a window, p patch size.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lomar_det.data.images import load_image
from lomar_det.errors import UserError
from lomar_det.layers import grid_size, patchify, unpatchify

from ..data.transforms import denormalize, fit_image
from ..models.lomar import LoMaR
from ..models.mae import MAE
from ..models.window_sampling import sample_windows

logger = logging.getLogger(__name__)

GREY = 0.5  # of masked patches
MAX_ASPECT = 4  # longer to shorter side; images beyond it lose their ends
MAX_TRIES = 5  # unreadable images in a row before an example is given up


@dataclass
class Reconstruction:
    """Images (3, height, width) in [0, 1], on the CPU.

    Attributes:
        original: The image as the model gets it.
        masked: The same, grey where the model sees nothing.
        predicted: MAE only: every patch as the decoder gives it, visible ones included.
        filled: The original with its masked patches predicted.
        boxes: (M, 4) LoMaR's windows in pixels (x, y, width, height); none for MAE. Where windows
            overlap, an earlier one lies on top: the first is always whole.
    """

    original: Tensor
    masked: Tensor
    predicted: Tensor | None
    filled: Tensor
    boxes: Tensor


def fit_to_model(image: Image.Image, model: LoMaR | MAE) -> Tensor:
    """An image as the model can reconstruct it: normalised, (3, height, width).

    LoMaR takes any size: the image is resized until its shorter side is the model's. MAE is bound
    to the size that it was built for, and gets the middle of the image.
    """
    if isinstance(model, MAE):
        return fit_image(image, model.img_size)
    p, side = model.patch_size, min(model.img_size)
    aspect = min(max(image.size) / min(image.size), MAX_ASPECT)
    longer = round(side * aspect / p) * p
    return fit_image(image, (side, longer) if image.width > image.height else (longer, side))


def open_examples(
    paths: Sequence,
    number: int,
    model: LoMaR | MAE,
    open_image: Callable[..., Image.Image] = load_image,
) -> list[tuple[str, Tensor]]:
    """(name, image as the model takes it) of up to ``number`` entries, spread over all.

    A warning names what cannot be read, and one of its neighbours takes its place.
    """
    examples = []
    number = min(number, len(paths))
    for i in range(number):
        start, end = i * len(paths) // number, (i + 1) * len(paths) // number
        for entry in map(paths.__getitem__, range(start, min(end, start + MAX_TRIES))):
            try:
                image = fit_to_model(open_image(entry), model)
            except UserError as error:
                logger.warning("not drawn: %s", error)
                continue
            examples.append((Path(str(entry)).name, image))
            break
    return examples


@torch.no_grad()
def reconstruct(
    model: LoMaR | MAE, image: Tensor, num_windows: int | None = None, seed: int = 0
) -> Reconstruction:
    """Masks an image at random and reconstructs it; the global generators are left alone.

    Predictions of models that were trained on normalised patches are scaled by the true mean and
    variance of each patch. That gives part of the answer away: say so beside the image.

    Args:
        model: On any device; it is evaluated, and left in the mode that it was in.
        image: (3, height, width), normalised, sides multiples of the patch size.
        num_windows: Windows of a LoMaR; the model's own number if None.
        seed: Picks windows and masks.
    """
    was_training = model.training
    model.eval()
    try:
        predict = _predict_windows if isinstance(model, LoMaR) else _predict_image
        return predict(model, image, num_windows, torch.Generator().manual_seed(seed))
    finally:
        model.train(was_training)


def _predict_windows(model, image, num_windows, generator) -> Reconstruction:
    p, k, device = model.patch_size, model.window_size, next(model.parameters()).device
    grid = grid_size(image.shape[1:], p)
    count = model.num_windows if num_windows is None else num_windows
    windows = sample_windows(1, grid, k, count, model.mask_ratio, generator=generator)
    pred = model(image[None].to(device), windows.to(device)).pred.float().cpu()  # (M, K, p * p * 3)
    patches = patchify(image[None].cpu(), p)[0]  # (L, p * p * 3)
    filled, hidden = patches.clone(), torch.zeros(len(patches), dtype=torch.bool)
    for ids, mask, pixels in reversed(
        list(zip(windows.patch_ids, windows.mask, pred, strict=True))
    ):
        pixels = _to_pixels(model, pixels, patches[ids])
        filled[ids] = torch.where(mask[:, None], pixels, patches[ids])
        hidden[ids] = mask
    corners = windows.patch_ids[:, 0]
    x, y = corners % grid[1] * p, corners // grid[1] * p
    side = torch.full_like(x, k * p)
    boxes = torch.stack([x, y, side, side], dim=1)
    return _draw(patches, hidden, None, filled, boxes, grid, p)


def _predict_image(model, image, _num_windows, generator) -> Reconstruction:
    p, device = model.patch_size, next(model.parameters()).device
    noise = torch.rand(1, model.grid[0] * model.grid[1], generator=generator)
    output = model(image[None].to(device), noise.to(device))
    patches = patchify(image[None].cpu(), p)[0]
    pred = _to_pixels(model, output.pred[0].float().cpu(), patches)
    hidden = output.mask[0].cpu()
    filled = torch.where(hidden[:, None], pred, patches)
    return _draw(patches, hidden, pred, filled, torch.empty(0, 4), model.grid, p)


def _to_pixels(model, pred: Tensor, patches: Tensor) -> Tensor:
    """Predictions in the space of the (input-normalised) pixels: (..., p * p * 3)."""
    if not model.norm_pix_loss:
        return pred
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return pred * (var + 1e-6).sqrt() + mean


def _draw(patches, hidden, pred, filled, boxes, grid, patch_size) -> Reconstruction:
    def image(tokens: Tensor) -> Tensor:
        return denormalize(unpatchify(tokens[None], grid, patch_size)[0])

    original = image(patches)
    covered = unpatchify(hidden[None, :, None].expand(1, -1, patches.shape[1]), grid, patch_size)[0]
    return Reconstruction(
        original=original,
        masked=torch.where(covered, GREY, original),
        predicted=None if pred is None else image(pred),
        filled=image(filled),
        boxes=boxes,
    )
