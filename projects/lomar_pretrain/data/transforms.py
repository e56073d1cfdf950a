"""Unlabelled images: opened and augmented.

Works without detectron2.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2

from lomar_det.data.images import MAX_MEGAPIXELS, Box, ImageSource, load_box
from lomar_det.errors import UserError
from lomar_det.layers import to_pair

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(images: Tensor) -> Tensor:
    """Images as the encoder sees them: uint8 (..., 3, height, width), ImageNet mean and std.

    On the device of the images: loaders send uint8, a quarter of the bytes, and a GPU normalises
    in no time.
    """
    mean, std = _mean_and_std(images.device)
    images = v2.functional.to_dtype(images, torch.float32, scale=True)
    return (images - mean).div_(std)


def denormalize(images: Tensor) -> Tensor:
    """Inverse of `normalize` on (..., 3, height, width), clipped to [0, 1]."""
    mean, std = _mean_and_std(images.device)
    return (images * std + mean).clamp(0, 1)


@lru_cache(maxsize=8)  # new tensors in every step would make the host wait for the GPU
@torch.inference_mode(False)
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the three channels, each (3, 1, 1)."""
    return tuple(
        torch.tensor(values, device=device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )


def fit_image(image: Image.Image, size: int | tuple[int, int]) -> Tensor:
    """An image resized to cover (height, width), cut to its middle, normalised: nothing random."""
    height, width = to_pair(size)
    image = ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC)
    return normalize(v2.functional.pil_to_tensor(image))


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

    def __call__(self, image) -> tuple[Tensor, Tensor]:
        return self.transform(image), torch.rand(self.shape)


class PretrainTransform:
    """Image -> random crop (3, height, width), uint8: LoMaR's RandomResizedCrop, bicubic.

    Its pixels are those of torchvision's RandomResizedCrop on the whole image, but for large JPEGs:
    they are decoded at a fraction of their size, and the box is rounded to coarser pixels.

    Args:
        img_size: Pixels of the crop, one int or (height, width).
        crop_scale: Smallest and largest share of the image's area.
        flip: Also flip horizontally, half of the time.
        max_megapixels: Larger images are refused; None for no limit.
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
        self.size, self.crop_scale = to_pair(img_size), list(crop_scale)
        self.flip = v2.RandomHorizontalFlip() if flip else v2.Identity()
        self.max_megapixels = max_megapixels

    def __call__(self, source: str | Path | ImageSource) -> Tensor:
        # twice the pixels, as in Pillow's thumbnails, so that a proper filter takes the last step
        enough = 2 * self.size[0], 2 * self.size[1]
        pixels = load_box(source, self.choose_box, enough, self.max_megapixels)
        # a view with the channels last, which torchvision resizes in a quarter of Pillow's time
        crop = v2.functional.resize(
            torch.from_numpy(pixels).permute(2, 0, 1),
            list(self.size),
            v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        return self.flip(crop).contiguous()

    def choose_box(self, height: int, width: int) -> Box:
        """A random box in an image of this size: (top, left, height, width)."""
        image = torch.empty(3, height, width, device="meta")
        return RandomResizedCrop.get_params(image, self.crop_scale, [3 / 4, 4 / 3])
