"""Regions of TIFF, BigTIFF, GeoTIFF, COG, JPEG 2000 and VRT files, by rasterio (GDAL)."""

import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from ..pixels import Box, find_extremes, find_limits, on_white, shrink_factor, to_8_bit

# GDAL has a hundred further formats, some of which follow links or run code.
DRIVERS = {".jp2": "JP2OpenJPEG", ".j2k": "JP2OpenJPEG", ".vrt": "VRT"}
# A file whose smallest part is larger holds hundreds of megabytes of memory for every pixel.
MOST_BLOCK_MEGAPIXELS = 64.0
# Of decoded blocks, for all open files; GDAL would take a twentieth of the machine.
CACHE_MB = 64
# The values of larger ones decide about 8 bit by a sample.
MOST_SCANNED_MEGAPIXELS = 180.0
_LOOK = 1024  # pixels of the side of the reduced image that decides the limits of 8 bit


class RasterRegions:
    """See `Regions`. The first three channels are red, green and blue; one channel is grey.

    Args:
        path: The file.

    Raises:
        OSError: the file cannot be opened, or not by region.
    """

    def __init__(self, path: Path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
                self._file = rasterio.open(
                    path.absolute(),  # GDAL takes some relative names for something else
                    driver=DRIVERS.get(path.suffix.lower(), "GTiff"),
                )
        file = self._file
        self.size = file.width, file.height
        self.block = file.block_shapes[0][::-1]
        self.resolution = None if file.transform.is_identity else abs(file.res[0])
        if self.block[0] * self.block[1] > MOST_BLOCK_MEGAPIXELS * 1e6:
            raise OSError(
                f"it is stored in parts of {self.block[0]} x {self.block[1]} pixels, too large to "
                f"be read by region. Convert it: rio convert -f COG {path} NEW.tif"
            )
        self._levels = [1, *sorted(file.overviews(1))]
        self._colors = self._limits = None
        kinds = file.colorinterp
        if kinds[0] == ColorInterp.palette:
            table = file.colormap(1)
            self._colors = np.array([table.get(i, (0, 0, 0, 255)) for i in range(256)], np.uint8)
            if file.nodata is not None:  # GDAL makes it transparent; Pillow does not
                self._colors[int(file.nodata), 3] = 255
            self._bands = [1]
        elif file.count < 3:
            self._bands = [1]
        else:
            has_alpha = file.count > 3 and kinds[3] == ColorInterp.alpha
            self._bands = [1, 2, 3, 4] if has_alpha else [1, 2, 3]
        structure = file.tags(1, ns="IMAGE_STRUCTURE") | file.tags(ns="IMAGE_STRUCTURE")
        bits = int(structure.get("NBITS", 8))
        is_grey = self._bands == [1] and self._colors is None
        if file.dtypes[0] != "uint8":
            self._limits = self._find_limits()
        elif is_grey and 1 < bits < 8:
            self._limits = 0, 2**bits - 1
        self._is_negative = is_grey and bits == 8 and structure.get("MINISWHITE") == "YES"
        self._is_premultiplied = (
            len(self._bands) == 4
            and file.tags(4, ns="IMAGE_STRUCTURE").get("ALPHA") == "PREMULTIPLIED"
        )

    def read(self, box: Box, enough: tuple[int, int]) -> np.ndarray:
        shrink = shrink_factor(box[2:], enough)
        level = max(level for level in self._levels if level <= shrink)
        if 2 * level <= shrink:  # no level of the file is near
            return self._read(box, shrink, Resampling.average)
        return self._read(box, level, Resampling.nearest)

    def _read(self, box: Box, level: int, resampling: Resampling) -> np.ndarray:
        """The box at a level of the file: exactly its pixels, none interpolated."""
        top, left, height, width = box
        rows, columns = max(1, round(height / level)), max(1, round(width / level))
        top, left = round(top / level) * level, round(left / level) * level
        top = max(0, min(top, self.size[1] - rows * level))
        left = max(0, min(left, self.size[0] - columns * level))
        window = Window(
            left,
            top,
            min(columns * level, self.size[0] - left),
            min(rows * level, self.size[1] - top),
        )
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
            bands = self._file.read(
                self._bands,
                window=window,
                out_shape=(len(self._bands), rows, columns),
                resampling=resampling,
            )
        return self._to_rgb(bands.transpose(1, 2, 0))

    def _to_rgb(self, pixels: np.ndarray) -> np.ndarray:
        if self._colors is not None:
            return on_white(self._colors[pixels[..., 0]])
        alpha = pixels[..., 3:]
        if self._limits is not None:
            pixels = to_8_bit(pixels[..., :3], self._nodata, self._limits)
        if self._is_negative:
            pixels = 255 - pixels
        if alpha.shape[-1]:
            if alpha.dtype != np.uint8:
                top = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
                alpha = to_8_bit(alpha, limits=(0, top))
            if self._is_premultiplied:
                return pixels[..., :3] + np.minimum(255 - alpha, 255 - pixels[..., :3])
            return on_white(np.concatenate([pixels[..., :3], alpha], axis=2))
        if pixels.shape[-1] == 1:
            return pixels.repeat(3, axis=2)
        return np.ascontiguousarray(pixels)

    @property
    def _nodata(self) -> float:
        return float("nan") if self._file.nodata is None else self._file.nodata

    def _find_limits(self) -> tuple[float, float]:
        """Of the whole image, because its parts must agree; of a sample of a very large one."""
        file, bands = self._file, self._bands[:3]
        if file.width * file.height > MOST_SCANNED_MEGAPIXELS * 1e6:
            shape = [min(_LOOK, side) for side in (file.height, file.width)]
            return find_limits(file.read(bands, out_shape=(len(bands), *shape)), self._nodata)
        rows = max(1, 2**24 // file.width)
        ends = []
        for top in range(0, file.height, rows):
            window = Window(0, top, file.width, min(rows, file.height - top))
            ends += find_extremes(file.read(bands, window=window), self._nodata)
        return find_limits(np.array(ends))
