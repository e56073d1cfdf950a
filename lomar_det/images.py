"""Finding and opening pictures of all kinds, the same way everywhere. Works without detectron2."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def find_images(paths: str | Path | Iterable[str | Path], setting: str = "data.path") -> list[Path]:
    """All pictures in one or several folders, recursively, sorted; single files are taken as given.

    Args:
        paths: Files and folders.
        setting: What the user gave them as, for messages.

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
            raise UserError(f"the image folder {path} does not exist; set {setting} to your images")
        inside = [
            Path(folder, name)
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
        if not inside:
            raise UserError(
                f"the folder {path} has no pictures ({', '.join(IMAGE_SUFFIXES)}), also not in "
                f"its subfolders; set {setting} to your images"
            )
        found += sorted(inside)
    return found


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
                swap = image.getexif().get(0x0112) in _TRANSPOSED
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
