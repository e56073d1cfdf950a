"""Opening pictures of all kinds, the same way in both stages. Works without detectron2."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import UserError

_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture as `load_image` gives it, from its header alone.

    Raises:
        UserError: the file is not a picture; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                # Of a PNG that does not begin with it, Pillow would look for it in all pixels.
                in_header = image.format != "PNG" or "exif" in image.info
                swap = in_header and image.getexif().get(0x0112) in _TRANSPOSED
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read as a picture ({type(error).__name__}: {error}); "
            "repair or remove it"
        ) from None
    return (height, width) if swap else (width, height)


def load_image(path: str | Path) -> Image.Image:
    """Opens a picture as RGB: EXIF orientation honoured, 16-bit scaled down, alpha on white.

    Raises:
        UserError: the file cannot be read as a picture; the message names it.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 and refuses from 179 megapixels.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large ({error}); cut it into tiles") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a picture ({type(error).__name__}: {error}); "
            "repair or remove it"
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, dtype=np.float64)
        top = 65535 if image.mode.startswith("I") else max(float(pixels.max()), 1e-9)
        image = Image.fromarray((pixels.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
