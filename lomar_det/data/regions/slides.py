"""Regions of microscopes' slides (SVS, NDPI, MRXS and others), by openslide."""

from pathlib import Path

import numpy as np
import openslide

from ..pixels import Box, on_white


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
        shrink = max(1, min(height // enough[0], width // enough[1]))
        # a little tolerance: levels are reduced by 4.0001 and the like
        level = self._slide.get_best_level_for_downsample(shrink * 1.01)
        factor = self._slide.level_downsamples[level]
        size = max(1, round(width / factor)), max(1, round(height / factor))
        try:
            return on_white(np.asarray(self._slide.read_region((left, top), level, size)))
        except openslide.OpenSlideError as error:
            raise OSError(str(error)) from None
