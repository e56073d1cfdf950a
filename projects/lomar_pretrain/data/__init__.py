"""Images for pretraining and classification: found, opened, cropped. Works without detectron2."""

from .sources import ImageList, find_images
from .transforms import PretrainTransform, WithNoise, denormalize, fit_image, normalize

__all__ = [
    "ImageList",
    "PretrainTransform",
    "WithNoise",
    "denormalize",
    "find_images",
    "fit_image",
    "normalize",
]
