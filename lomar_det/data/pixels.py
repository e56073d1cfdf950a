"""Pixel values of any type as 8 bit. Works without detectron2."""

import numpy as np

Box = tuple[int, int, int, int]  # top, left, height, width


def shrink_factor(size: tuple[int, int], enough: tuple[int, int]) -> int:
    """How many times a part of ``size`` may be reduced and still measure ``enough``, at least 1."""
    return max(1, min(size[0] // enough[0], size[1] // enough[1]))


def to_8_bit(
    pixels: np.ndarray, nodata: float = float("nan"), limits: tuple[float, float] | None = None
) -> np.ndarray:
    """Values of any type as 0 to 255, uint8, in the shape of ``pixels``.

    NaN, infinity and ``nodata`` are black, and do not count for the limits.

    Args:
        pixels: Integers or floating point numbers.
        nodata: The number that stands for "not measured".
        limits: What becomes 0 and 255, as `find_limits` finds it; by default those of ``pixels``.
    """
    low, high = find_limits(pixels, nodata) if limits is None else limits
    pixels = pixels.astype(np.float32)
    scale = 255 / (high - low) if high > low else 0
    values = np.where(_is_valid(pixels, nodata), pixels - np.float32(low), 0) * np.float32(scale)
    return np.rint(values.clip(0, 255)).astype(np.uint8)


def find_limits(pixels: np.ndarray, nodata: float = float("nan")) -> tuple[float, float]:
    """Which values become black and white; see `load_image` for the rule."""
    is_integer = np.issubdtype(pixels.dtype, np.integer)
    low, high = find_extremes(pixels.astype(np.float32), nodata)
    depths = [2**bits - 1 for bits in (8, 10, 12, 14, 16)] if is_integer else [1]
    if low >= 0 and high <= depths[-1]:
        return 0, next(top for top in depths if high <= top)
    return low, high


def find_extremes(pixels: np.ndarray, nodata: float = float("nan")) -> tuple[float, float]:
    """The smallest and largest value that counts, of the type of ``pixels``."""
    valid = _is_valid(pixels.astype(np.float32), nodata)
    if not valid.any():
        return np.inf, -np.inf
    return pixels[valid].min(), pixels[valid].max()


def _is_valid(pixels: np.ndarray, nodata: float) -> np.ndarray:
    return np.isfinite(pixels) & (pixels != np.float32(nodata))


def on_white(pixels: np.ndarray) -> np.ndarray:
    """RGBA (height, width, 4) over a white ground: (height, width, 3), uint8."""
    alpha = pixels[..., 3:].astype(np.uint16)
    blended = pixels[..., :3] * alpha + 255 * (255 - alpha)
    return ((blended + 127) // 255).astype(np.uint8)
