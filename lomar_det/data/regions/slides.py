"""Regions of microscopes' slides (SVS, NDPI, MRXS and others), by openslide."""

from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from ..pixels import Box, on_white, shrink_factor

STRIP_PIXELS = 2**22  # read at a time where a slide has to be reduced


class SlideRegions:
    """See `Regions`. What the microscope has not seen is white, like the glass around.

    Args:
        path: The file.

    Raises:
        OSError: the file is no slide that openslide knows.
    """

    def __init__(self, path: Path):
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise OSError(str(error)) from None
        self.size = self._slide.dimensions
        properties = self._slide.properties
        side = [f"openslide.level[0].tile-{name}" for name in ("width", "height")]
        self.block = tuple(int(properties.get(name, 256)) for name in side)
        width = properties.get(openslide.PROPERTY_NAME_MPP_X)
        self.resolution = None if width is None else float(width)

    def read(self, box: Box, enough: tuple[int, int]) -> np.ndarray:
        top, left, height, width = box
        shrink = shrink_factor((height, width), enough)
        # a little tolerance: levels are reduced by 4.0001 and the like
        level = self._slide.get_best_level_for_downsample(shrink * 1.01)
        factor = self._slide.level_downsamples[level]
        rest = max(1, int(shrink * 1.01 / factor))
        if rest < 2:
            return self._read(level, (left, top), (width / factor, height / factor))
        # No level of the file is near. Strip by strip: all of it at this level may be gigabytes.
        columns, rows = (max(1, int(side / factor / rest)) for side in (width, height))
        strip = max(1, STRIP_PIXELS // (columns * rest * rest))
        parts = []
        for row in range(0, rows, strip):
            size = columns * rest, min(strip, rows - row) * rest
            pixels = self._read(level, (left, top + round(row * rest * factor)), size)
            parts.append(np.asarray(Image.fromarray(pixels).reduce(rest)))
        return np.concatenate(parts)

    def _read(self, level: int, corner: tuple[int, int], size: tuple[float, float]) -> np.ndarray:
        width, height = (max(1, round(side)) for side in size)
        try:
            return on_white(np.asarray(self._slide.read_region(corner, level, (width, height))))
        except openslide.OpenSlideError as error:
            raise OSError(str(error)) from None
