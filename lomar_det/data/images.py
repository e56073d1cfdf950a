"""Opening images of all kinds, the same way in all stages. Works without detectron2.

Formats are Pillow's, and those of `lomar_det.data.regions`, which also reads large TIFFs. A file
with several frames (TIFF, animated WebP, GIF) gives the first.
"""

import contextlib
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError
from .pixels import Box, shrink_factor, to_8_bit
from .regions import EXTRA, MissingReaderError, Regions, open_regions

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MAX_MEGAPIXELS = 180.0  # what Pillow refuses by itself; 540 MB as RGB

_EXIF_ORIENTATION = 0x0112
_GDAL_NODATA = 42113  # TIFF tag: the number that stands for "not measured"
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(UserError):
    """A file is not an image that can be used.

    Attributes:
        reason: The cause alone, in one line; the message also has the file and the remedy.
    """

    # torch passes on an error of a loader's worker by calling its class with the message alone.
    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


class ImageSource(Protocol):
    """What `load_image` opens besides a path, for instance a member of a tar file."""

    def open(self, mode: str) -> IO[bytes]: ...


def image_size(
    source: str | Path | ImageSource, max_megapixels: float | None = MAX_MEGAPIXELS
) -> tuple[int, int]:
    """(width, height) of an image as `load_image` gives it, from its header alone.

    ``max_megapixels`` is that of `load_box`.

    Raises:
        UnreadableImageError: the file is not an image, or too large; the message names it.
    """
    if regions := find_regions(source):
        return regions.size
    with _opened(source, max_megapixels) as image:
        width, height = image.size
        swap = _says_orientation(image) and _orientation(image) >= 5
        # Pillow gives a TIFF's size as it is after turning
        return (height, width) if swap and image.format != "TIFF" else (width, height)


def load_image(
    source: str | Path | ImageSource, max_megapixels: float | None = MAX_MEGAPIXELS
) -> Image.Image:
    """Opens an image as RGB: EXIF orientation honoured, alpha on white, more than 8 bits scaled.

    How values beyond 8 bits become 0 to 255:

    - Integers by the smallest usual bit depth (8, 10, 12, 14, 16) that holds the largest value,
      because files do not say whether their 16 bits hold the 12 of a camera or a scanner: divided
      by 65535 those would be almost black and left with 16 grey levels. So two images of one set
      may be scaled differently; within an image ratios stay.
    - Floating point numbers within [0, 1] by 1.
    - Other floating point numbers, negative ones and integers beyond 16 bits have no common scale:
      stretched from the lowest to the highest value.
    - NaN, infinity and a GeoTIFF's nodata value are black and do not count.

    Colour images of 16 bits come from Pillow with 8, their high bytes.

    Args:
        source: A path, or anything that opens like one.
        max_megapixels: Larger images are refused before they are decoded; None for no limit.

    Raises:
        UnreadableImageError: the file cannot be read as an image, or is too large; the message
            names it.
    """
    with _readable(source):
        if regions := find_regions(source):
            return Image.fromarray(_read_whole(source, regions, max_megapixels))
    with _opened(source, max_megapixels) as image:
        return _load(image)


def load_box(
    source: str | Path | ImageSource,
    choose: Callable[[int, int], Box],
    enough: tuple[int, int],
    max_megapixels: float | None = MAX_MEGAPIXELS,
) -> np.ndarray:
    """Part of an image, decoded no finer than needed: what `load_image` gives there, but faster.

    A file that is read by region may have any size. A JPEG is decoded at 1/8, 1/4 or 1/2 of its
    size if the box is then still large enough, and the box is rounded to its pixels. At full size,
    simplejpeg (``pip install simplejpeg``) gives the same pixels as Pillow in less time.

    Args:
        source: A path, or anything that opens like one.
        choose: (height, width) of the image -> the box (top, left, height, width).
        enough: (height, width) that the part should have at least, unless the box is smaller.
        max_megapixels: Larger images that can only be opened whole are refused before they are
            decoded; None for no limit.

    Returns:
        (height, width, 3), uint8, RGB; a view of a larger array.

    Raises:
        UnreadableImageError: as `load_image`.
    """
    with _readable(source):
        if regions := find_regions(source):
            return _read_region(regions, choose(*regions.size[::-1]), enough)
    with _opened(source, max_megapixels) as image:
        if image.format != "JPEG":
            pixels = np.array(_load(image))
            return _cut(pixels, choose(*pixels.shape[:2]))
        orientation = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        top, left, box_height, box_width = choose(height, width)
        shrink = shrink_factor((box_height, box_width), enough)
        pixels = _decode_fast(image) if shrink == orientation == 1 else None
        if pixels is None:
            image.draft(None, (image.width // shrink, image.height // shrink))
            pixels = np.array(_load(image))
        y, x = pixels.shape[0] / height, pixels.shape[1] / width
        bottom, right = round((top + box_height) * y), round((left + box_width) * x)
        top, left = round(top * y), round(left * x)
        return _cut(pixels, (top, left, bottom - top, right - left))


def find_regions(source: str | Path | ImageSource) -> Regions | None:
    """The reader of an image that is read by region; None for one that is opened whole.

    Raises:
        UnreadableImageError: the file cannot be opened, or its reader is not installed.
    """
    with _readable(source):
        return open_regions(Path(source)) if isinstance(source, str | Path) else None


def _read_region(regions: Regions, box: Box, enough: tuple[int, int]) -> np.ndarray:
    width, height = regions.size
    if min(box[:2]) < 0 or box[0] + box[2] > height or box[1] + box[3] > width:
        # the file has shrunk since somebody looked at it
        raise OSError(f"the box {box} is not inside its {width} x {height} pixels")
    return regions.read(box, enough)


def _read_whole(
    source: str | Path | ImageSource, regions: Regions, max_megapixels: float | None
) -> np.ndarray:
    width, height = regions.size
    if max_megapixels is not None and width * height > max_megapixels * 1e6:
        reason = f"it has more than {max_megapixels:g} megapixels"
        raise UnreadableImageError(
            f"{source} is too large to be opened whole: {reason}; it can be read by region", reason
        )
    return regions.read((0, 0, height, width), (height, width))


@contextlib.contextmanager
def _readable(source: str | Path | ImageSource) -> Iterator[None]:
    """What fails inside becomes an error that names the file."""
    try:
        yield
    except UserError:
        raise
    except MissingReaderError as error:
        raise UnreadableImageError(f"{source} cannot be read: {error}", str(error)) from None
    except Exception as error:  # decoders raise anything, from struct.error to MemoryError
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if isinstance(error, UnidentifiedImageError):  # its own text shows a Python object
            reason = "it is empty, damaged at its head, or of an unknown format"
        raise UnreadableImageError(
            f"{source} cannot be read as an image ({reason}); repair or remove it", reason
        ) from None


def _decode_fast(jpeg: Image.Image) -> np.ndarray | None:
    """The whole image, as stored, by simplejpeg, if it is installed and knows the colours."""
    if simplejpeg is None or jpeg.mode not in ("RGB", "L"):
        return None
    jpeg.fp.seek(0)
    try:
        return simplejpeg.decode_jpeg(jpeg.fp.read(), "RGB")
    except ValueError:  # damaged; Pillow decides whether it can still be used
        return None


def _cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


def _load(image: Image.Image) -> Image.Image:
    is_known = _says_orientation(image)
    image.load()
    orientation = _orientation(image) if is_known else 1
    rgb = _to_rgb(image)
    return rgb if orientation == 1 else rgb.transpose(_TRANSPOSE[orientation])


@contextlib.contextmanager
def _opened(
    source: str | Path | ImageSource, max_megapixels: float | None
) -> Iterator[Image.Image]:
    """The image with its header read; what fails inside becomes an error that names the file."""
    with _readable(source), _limited(source, max_megapixels), warnings.catch_warnings():
        path = Path(source) if isinstance(source, str) else source
        if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")  # to open a pipe would wait for ever
        # Pillow itself only warns up to twice the limit.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Damaged EXIF data and the like, of no consequence for the pixels.
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        with path.open("rb") as file, Image.open(file) as image:
            if image.format == "EPS":
                raise OSError("PostScript is a program, not an image")  # run by Ghostscript
            yield image


@contextlib.contextmanager
def _limited(source: str | Path | ImageSource, max_megapixels: float | None) -> Iterator[None]:
    """Sets Pillow's own limit; what goes beyond it becomes an error that says what to do."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None if max_megapixels is None else int(max_megapixels * 1e6)
    try:
        yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        reason = f"it has more than {max_megapixels:g} megapixels"
        raise UnreadableImageError(
            f"{source} is too large: {reason}. As a tiled TIFF it can be read by region, whatever "
            f"its size: {EXTRA}, then rio convert -f COG {source} NEW.tif. Or, for pretraining, "
            "raise data.max_megapixels",
            reason,
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _says_orientation(image: Image.Image) -> bool:
    """Whether the EXIF data is known without decoding.

    Pillow would search a whole PNG for EXIF data that does not come before the pixels.
    """
    return image.format != "PNG" or "exif" in image.info


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; damaged EXIF data says nothing about the pixels."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(to_8_bit(np.asarray(image), _nodata(image)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _nodata(image: Image.Image) -> float:
    try:
        return float(image.tag_v2[_GDAL_NODATA])
    except (AttributeError, KeyError, TypeError, ValueError):  # no TIFF, no such tag, no number
        return float("nan")
