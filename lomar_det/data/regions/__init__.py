"""Reading a part of a large image, without the rest of it. Works without detectron2.

`open_regions` finds the reader of a file: rasterio for large TIFFs, JPEG 2000 and VRT, openslide
for microscopes' slides (``pip install 'lomar-det[large]'`` brings both). All other images are
opened whole, by Pillow. `lomar_det.data.images` asks here first: a file has one reader everywhere.
"""

import math
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..pixels import Box

# Below this, a TIFF is opened whole: simpler, and as today.
LEAST_MEGAPIXELS = 16.0
TIFF_SUFFIXES = (".tif", ".tiff", ".gtiff")
RASTER_SUFFIXES = (".jp2", ".j2k", ".vrt")
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".vmu", ".czi")
EXTRA = "pip install 'lomar-det[large]'"


class Regions(Protocol):
    """An image that is read box by box.

    Attributes:
        size: (width, height) in pixels.
        block: (width, height) of what has to be decoded for a single pixel.
        resolution: Size of a pixel, if the file says it: micrometres in a slide, else the unit of
            the raster's coordinates.
    """

    size: tuple[int, int]
    block: tuple[int, int]
    resolution: float | None

    def read(self, box: Box, enough: tuple[int, int]) -> np.ndarray:
        """Part of the image, decoded no finer than needed: RGB (height, width, 3), uint8.

        Args:
            box: (top, left, height, width), inside the image.
            enough: (height, width) that the result should have at least, unless the box is smaller.
                The box is then rounded to the coarser pixels of a reduced level of the file.

        Raises:
            UnreadableImageError: this part is damaged.
        """
        ...


class MissingReaderError(Exception):
    """The package that reads a kind of file is not installed."""


def open_regions(path: Path) -> Regions | None:
    """The reader of a file's regions; None for an image that is to be opened whole.

    The last ones stay open, in each process for itself. A file that was replaced is opened again.

    Raises:
        MissingReaderError: the file can only be read with a package that is not there.
        OSError: the file cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix not in (*TIFF_SUFFIXES, *RASTER_SUFFIXES, *SLIDE_SUFFIXES):
        return None
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
        raise OSError("not a regular file")
    version = status.st_mtime_ns, status.st_size
    if suffix in TIFF_SUFFIXES and _upright_pixels(path, *version) <= LEAST_MEGAPIXELS * 1e6:
        return None
    return _open(path, *version, os.getpid())


@lru_cache(maxsize=8)
def _open(path: Path, _modified: int, _size: int, _process: int) -> Regions | None:
    suffix = path.suffix.lower()
    if suffix in SLIDE_SUFFIXES:
        return _open_slide(path)
    try:
        from .raster import RasterRegions
    except ImportError:
        if suffix in TIFF_SUFFIXES:
            return None  # Pillow may manage
        raise MissingReaderError(f"{suffix} files need rasterio: {EXTRA}") from None
    return RasterRegions(path)


def _open_slide(path: Path) -> Regions:
    try:
        from .slides import SlideRegions
    except ImportError:
        raise MissingReaderError(f"{path.suffix} files need openslide: {EXTRA}") from None
    return SlideRegions(path)


@lru_cache(maxsize=2**16)  # apart from the readers: small TIFFs must not close large ones
def _upright_pixels(path: Path, _modified: int, _size: int) -> float:
    """Pixels of a TIFF; 0 if its header turns it, infinity if Pillow does not know it."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            # width and height as the file has them; Pillow has turned those of ``image.size``
            orientation = image.tag_v2.get(274, 1) if hasattr(image, "tag_v2") else 1
            return image.width * image.height if orientation == 1 else 0
    except Exception:  # unusual compressions, many channels
        return math.inf
    finally:
        Image.MAX_IMAGE_PIXELS = before
