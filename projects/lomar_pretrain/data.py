"""Unlabelled pictures: opened and augmented.

Works without detectron2.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lomar_det.errors import UserError
from lomar_det.images import MAX_MEGAPIXELS, ImageSource, UnreadableImageError, load_image
from lomar_det.layers import to_pair

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(image: Image.Image) -> Tensor:
    """A picture as the encoder sees it: (3, height, width), ImageNet mean and std."""
    tensor = v2.functional.to_dtype(v2.functional.to_image(image), torch.float32, scale=True)
    return v2.functional.normalize(tensor, IMAGENET_MEAN, IMAGENET_STD)


def denormalize(images: Tensor) -> Tensor:
    """Inverse of `normalize` on (..., 3, height, width), clipped to [0, 1]."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=images.device)[:, None, None]
    return (images * std + mean).clamp(0, 1)


class PretrainTransform:
    """Picture -> normalised random crop (3, height, width): LoMaR's RandomResizedCrop, bicubic.

    Args:
        img_size: Pixels of the crop, one int or (height, width).
        crop_scale: Smallest and largest share of the picture's area.
        flip: Also flip horizontally, half of the time.
        max_megapixels: Larger pictures are refused; None for no limit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        crop_scale: Sequence[float] = (0.2, 1.0),
        flip: bool = False,
        max_megapixels: float | None = MAX_MEGAPIXELS,
    ):
        if max_megapixels is not None and not (
            isinstance(max_megapixels, int | float) and max_megapixels > 0
        ):
            raise UserError(f"data.max_megapixels={max_megapixels} must be above 0, or null")
        self.crop = v2.RandomResizedCrop(
            to_pair(img_size),
            scale=tuple(crop_scale),
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        self.flip = v2.RandomHorizontalFlip() if flip else v2.Identity()
        self.max_megapixels = max_megapixels

    def __call__(self, source: str | Path | ImageSource) -> Tensor:
        return normalize(self.flip(self.crop(load_image(source, self.max_megapixels))))


def pick_readable(pictures: Sequence, count: int) -> list:
    """Up to ``count`` pictures, spread over all of them, that can be opened."""
    step = max(1, len(pictures) // count)
    picked = []
    for start in range(0, len(pictures), step)[:count]:
        for index in range(start, min(start + min(step, 20), len(pictures))):
            try:
                load_image(pictures[index])
            except UnreadableImageError:
                continue
            picked.append(pictures[index])
            break
    return picked
