"""Unlabelled pictures: found, opened and augmented.

Works without detectron2.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from lomar_det.errors import UserError
from lomar_det.images import load_image
from lomar_det.layers import to_pair

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def find_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """All pictures in one or several folders, recursively, sorted; single files are taken as given.

    Raises:
        UserError: a path does not exist, or nothing in it is a picture.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    found: list[Path] = []
    for path in (Path(path).expanduser() for path in paths):
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise UserError(f"the image folder {path} does not exist; set data.path to your images")
        inside = [
            Path(folder, name)
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
        if not inside:
            raise UserError(
                f"the folder {path} has no pictures ({', '.join(IMAGE_SUFFIXES)}), also not in "
                "its subfolders; set data.path to your images"
            )
        found += sorted(inside)
    return found


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
        transform: Makes the image; None ("cannot be used") stays None.
        shape: The model's ``noise_shape``.
    """

    def __init__(self, transform: Callable[[Any], Tensor | None], shape: tuple[int, ...]):
        self.transform, self.shape = transform, shape

    def __call__(self, sample) -> tuple[Tensor, Tensor] | None:
        image = self.transform(sample)
        return None if image is None else (image, torch.rand(self.shape))


class PretrainTransform:
    """Path -> normalised random crop (3, height, width): LoMaR's RandomResizedCrop, bicubic.

    Args:
        img_size: Pixels of the crop, one int or (height, width).
        crop_scale: Smallest and largest share of the picture's area.
        flip: Also flip horizontally, half of the time.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int],
        crop_scale: Sequence[float] = (0.2, 1.0),
        flip: bool = False,
    ):
        self.crop = v2.RandomResizedCrop(
            to_pair(img_size),
            scale=tuple(crop_scale),
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        self.flip = v2.RandomHorizontalFlip() if flip else v2.Identity()

    def __call__(self, path: str | Path) -> Tensor:
        return normalize(self.flip(self.crop(load_image(path))))
