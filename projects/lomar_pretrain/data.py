"""Unlabelled pictures: opened and augmented.

Works without detectron2.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from lomar_det.errors import UserError
from lomar_det.images import MAX_MEGAPIXELS, ImageSource, load_image
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


def fit_image(image: Image.Image, size: int | tuple[int, int]) -> Tensor:
    """A whole picture, nothing random: resized to cover (height, width), its middle normalised."""
    height, width = to_pair(size)
    return normalize(ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC))


class WithNoise:
    """Adds the random numbers from which a model makes an image's windows or mask.

    Drawn under the sample's seed, like its crop, they are the same however a batch is split over
    processes and passes.

    Args:
        transform: Makes the image.
        shape: The model's ``noise_shape``.
    """

    def __init__(self, transform: Callable[..., Tensor], shape: tuple[int, ...]):
        self.transform, self.shape = transform, shape

    def __call__(self, picture) -> tuple[Tensor, Tensor]:
        return self.transform(picture), torch.rand(self.shape)


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
