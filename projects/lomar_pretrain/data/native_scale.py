"""Large images at their own scale: parts of them are read, and only what the model looks at.

A crop that is a share of a large image shrinks it until its objects are gone. Here an image counts
as often as regions of a fixed size fit into it, and LoMaR's windows are chosen first and read then.

Shapes: M views of an image, which are LoMaR's windows or the one image that MAE sees; h x w pixels
of a view.
"""

import contextlib
import logging
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lomar_det.data.images import (
    MAX_MEGAPIXELS,
    Box,
    ImageSource,
    UnreadableImageError,
    find_regions,
    image_size,
    load_box,
)
from lomar_det.data.regions import Regions
from lomar_det.errors import UserError

from ..models.lomar import LoMaR
from ..models.mae import MAE
from .sources import ImageList, counted

logger = logging.getLogger(__name__)

ReadBox = Callable[[Box], np.ndarray]

MAX_REDRAWS = 10  # of an empty view; then it is taken as it is
MOST_SHRINK = 4.0  # of a crop that is a share of the image, before a warning
SIZES_LOOKED_AT = 50  # images whose headers decide about that warning
FLAT = 8  # grey levels: a patch that differs by less in itself shows nothing


@dataclass(frozen=True)
class Part:
    """One of the samples that an image gives in an epoch."""

    source: Path | ImageSource
    number: int

    def __str__(self) -> str:
        return str(self.source)


class RegionList(Sequence[Part]):
    """Images by number, each as often as regions of ``region_size`` fit into it, at least once.

    An epoch then sees every image in proportion to its area.

    Args:
        images: The images; their headers are read now.
        region_size: Side of a region in pixels.
        max_megapixels: Larger images that can only be opened whole will be refused.
    """

    def __init__(
        self,
        images: ImageList,
        region_size: int,
        max_megapixels: float | None = MAX_MEGAPIXELS,
    ):
        self.images = images
        counts = [
            _count_regions(image, region_size, max_megapixels)
            for image in counted(images, f"of {len(images)} headers read")
        ]
        self._starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Part:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = int(np.searchsorted(self._starts, index, side="right")) - 1
        return Part(self.images[image], index - int(self._starts[image]))

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """All numbers shuffled."""
        return rng.permutation(len(self))


def _count_regions(
    image: Path | ImageSource, region_size: int, max_megapixels: float | None
) -> int:
    try:
        width, height = image_size(image, max_megapixels)
    except UnreadableImageError:
        return 1  # the loader replaces and reports it
    return max(1, round(width * height / region_size**2))


class ViewsAtScale:
    """Part of an image -> what the model looks at in a random region of it, at a random scale.

    Positions, scales and noise are drawn from torch's and Python's global generators.

    Args:
        model: LoMaR sees its windows, MAE an image.
        region_size: Side of the region in pixels of the image.
        scale: Pixels of the image per pixel of the model, smallest and largest; log-uniform.
        flip: Also flip views horizontally, half of the time.
        max_empty: A view of which a larger share of patches shows nothing is drawn again.
        max_megapixels: Larger images that can only be opened whole are refused.

    Raises:
        UserError: LoMaR has absolute positions, which windows from anywhere do not have.
    """

    def __init__(
        self,
        model: LoMaR | MAE,
        region_size: int,
        scale: Sequence[float] = (1.0, 1.0),
        flip: bool = False,
        max_empty: float = 0.5,
        max_megapixels: float | None = MAX_MEGAPIXELS,
    ):
        if isinstance(model, LoMaR):
            if model.abs_pos:
                raise UserError(
                    "data.region_size reads windows from anywhere in an image, without a place "
                    "among absolute positions: set model.rel_pos=True model.abs_pos=False"
                )
            side = model.window_size * model.patch_size
            self.view, self.num_views = (side, side), model.num_windows
        else:
            self.view, self.num_views = model.img_size, 1
        self.img_size = max(model.img_size)
        self.noise_shape, self.patch_size = model.noise_shape, model.patch_size
        self.region_size, self.scale, self.max_empty = region_size, scale, max_empty
        self.flip = v2.RandomHorizontalFlip() if flip else v2.Identity()
        self.max_megapixels = max_megapixels

    def __call__(self, part: Part) -> tuple[Tensor, Tensor, Tensor]:
        """Returns views (M, 3, h, w) uint8, the model's noise, and how many views were redrawn."""
        place, read = self.open_region(part.source)
        views, redrawn = [], 0
        for _ in range(self.num_views):
            view = self._resize(read(place.draw_box()))
            for _ in range(MAX_REDRAWS):
                if not self._is_empty(view):
                    break
                redrawn += 1
                view = self._resize(read(place.draw_box()))
            views.append(self.flip(view))
        return torch.stack(views), torch.rand(self.noise_shape), torch.tensor(redrawn)

    def open_example(self, part: Part) -> Image.Image:
        """A place in an image at the middle scale, for a drawing; always the same of each part."""
        side = math.ceil(self.img_size * math.sqrt(self.scale[0] * self.scale[1]))
        numbers = random.Random(part.number)

        def choose(height: int, width: int) -> Box:
            rows, columns = min(height, side), min(width, side)
            return (
                numbers.randint(0, height - rows),
                numbers.randint(0, width - columns),
                rows,
                columns,
            )

        size = self.img_size, self.img_size
        return Image.fromarray(load_box(part.source, choose, size, self.max_megapixels))

    def open_region(self, source: Path | ImageSource) -> tuple["Place", "ReadBox"]:
        """A random region, and what reads a box in it: (height, width, 3).

        Views are read singly where that decodes less of the file than the region does.
        """
        limit = self.max_megapixels
        width, height = image_size(source, limit)
        place = Place.draw((height, width), self.view, self.region_size, self.scale)
        regions = find_regions(source)
        if regions is not None and self.reads_singly(place, regions):
            enough = place.reduced(place.side)
            return place, lambda box: load_box(source, lambda *_: box, enough)
        enough = place.reduced(place.region[2:])
        pixels = load_box(source, lambda *_: place.region, enough, limit)
        return place, partial(cut_box, pixels, place.region)

    def reads_singly(self, place: "Place", regions: Regions) -> bool:
        """Whether the views of a place are read one by one, and not cut from its region."""
        return place.prefers_views(regions.block, self.num_views)

    def _resize(self, pixels: np.ndarray) -> Tensor:
        view = torch.from_numpy(pixels).permute(2, 0, 1)
        if view.shape[1:] == self.view:
            return view.contiguous()
        mode = v2.InterpolationMode.BICUBIC
        return v2.functional.resize(view, list(self.view), mode, antialias=True).contiguous()

    def _is_empty(self, view: Tensor) -> bool:
        p = self.patch_size
        cells = view.unflatten(2, (-1, p)).unflatten(1, (-1, p))  # (3, rows, p, columns, p)
        low, high = cells.amin((2, 4)), cells.amax((2, 4))
        flat = ((high - low) < FLAT).all(dim=0)
        return flat.float().mean().item() > self.max_empty


@dataclass(frozen=True)
class Place:
    """Where views are drawn from, in pixels of the image.

    All numbers are multiples of ``shrink``, so that a view has the same pixels whether it is read
    by itself or cut from the region.

    Attributes:
        region: The box that all views lie in.
        side: (height, width) of a view.
        shrink: A power of two by which the file may be reduced; what is left is twice the view, so
            that a proper filter takes the last step of the resizing.
    """

    region: Box
    side: tuple[int, int]
    shrink: int = 1

    @classmethod
    def draw(
        cls,
        size: tuple[int, int],
        view: tuple[int, int],
        region_size: int,
        scale: Sequence[float],
    ) -> "Place":
        """A random place in an image of (height, width); smaller ones than a view are enlarged."""
        factor = math.exp(random.uniform(*map(math.log, scale)))
        factor = min(factor, size[0] / view[0], size[1] / view[1])
        shrink = 2 ** max(0, math.floor(math.log2(factor / 2)))
        side = tuple(max(1, int(factor * length) // shrink) * shrink for length in view)
        rows, columns = (max(min(size[i], region_size) // shrink * shrink, side[i]) for i in (0, 1))
        top = random.randint(0, (size[0] - rows) // shrink) * shrink
        left = random.randint(0, (size[1] - columns) // shrink) * shrink
        return cls((top, left, rows, columns), side, shrink)

    def draw_box(self) -> Box:
        """The box of a view."""
        (top, left, height, width), (rows, columns) = self.region, self.side
        y = random.randint(0, (height - rows) // self.shrink) * self.shrink
        x = random.randint(0, (width - columns) // self.shrink) * self.shrink
        return top + y, left + x, rows, columns

    def reduced(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that a part of this size needs to have when it is decoded."""
        return size[0] // self.shrink, size[1] // self.shrink

    def prefers_views(self, block: tuple[int, int], num_views: int) -> bool:
        """Whether views touch fewer of the file's blocks than the region does."""
        # on average, a side covers one block more than fits into it
        columns, rows = (length * self.shrink for length in block)
        view = (self.side[0] / rows + 1) * (self.side[1] / columns + 1)
        region = (self.region[2] / rows + 1) * (self.region[3] / columns + 1)
        return num_views * view < region


def cut_box(pixels: np.ndarray, region: Box, box: Box) -> np.ndarray:
    """A box, in pixels of the image, of a region that was decoded at any scale."""
    y, x = pixels.shape[0] / region[2], pixels.shape[1] / region[3]
    top, left = box[0] - region[0], box[1] - region[1]
    bottom, right = round((top + box[2]) * y), round((left + box[3]) * x)
    return pixels[round(top * y) : bottom, round(left * x) : right]


def views_as_images(views: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Views (B, M, 3, h, w) and a model's noise as a batch of B * M images for it.

    LoMaR takes an image that is a window; the numbers for the window's place then do nothing.
    """
    if noise.dim() == 3:  # LoMaR: (B, M, numbers of a window)
        noise = noise.flatten(0, 1)[:, None]
    return views.flatten(0, 1), noise


def warn_of_shrinking(
    images: ImageList, crop_scale: Sequence[float], img_size: tuple[int, int]
) -> None:
    """Warns where crops that are shares of large images shrink them more than four times."""
    shrinks = []
    for index in range(0, len(images), max(1, len(images) // SIZES_LOOKED_AT)):
        with contextlib.suppress(UnreadableImageError):
            width, height = image_size(images[index])
            area = width * height * sum(crop_scale) / 2
            shrinks.append(math.sqrt(area / (img_size[0] * img_size[1])))
    if shrinks and (typical := statistics.median(shrinks)) > MOST_SHRINK:
        logger.warning(
            "Crops of data.crop_scale=%s shrink these images %.0f times: small things vanish. "
            "data.region_size=%d shows parts of them at their own scale",
            list(crop_scale),
            typical,
            8 * max(img_size),
        )
