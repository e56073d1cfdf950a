"""Are the segmentations of a COCO file well-formed? And where do they lie?

pycocotools trusts what it is given: a damaged run-length string corrupts its memory. So masks are
checked before it sees them.
"""

import numpy as np
import pycocotools.mask as mask_util

Box = tuple[float, float, float, float]


def mask_box(segmentation: list | dict, width: int, height: int) -> Box:
    """The box around a mask, (x0, y0, x1, y1) in pixels; all zeros if it has no pixel.

    Args:
        segmentation: Polygons, or a run-length encoding, compressed or not.
        width, height: Of the image.

    Raises:
        ValueError: the segmentation is malformed; the message says how.
    """
    if isinstance(segmentation, dict):
        return _rle_box(segmentation, width, height)
    if isinstance(segmentation, list):
        return _polygons_box(segmentation)
    raise ValueError(f"it is of type {type(segmentation).__name__}")


def _polygons_box(polygons: list) -> Box:
    parts = []
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise ValueError("polygons must be in a list of lists, also a single one")
        try:
            points = np.array(polygon)
        except ValueError:  # lists of several lengths in it
            points = np.empty((0, 0))
        if points.ndim != 1 or points.dtype.kind not in "iuf":
            raise ValueError("a polygon must be a flat list of numbers")
        if points.size < 6:
            raise ValueError(f"a polygon has {points.size} numbers, fewer than three points")
        if points.size % 2:
            raise ValueError(f"a polygon has an odd number of coordinates, {points.size}")
        parts.append(points)
    points = (np.concatenate(parts) if parts[1:] else parts[0]).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a polygon has a coordinate that is not finite")
    return (*points.min(0), *points.max(0))


def _rle_box(rle: dict, width: int, height: int) -> Box:
    if rle.get("size") != [height, width]:
        raise ValueError(f"its size is {rle.get('size')}, the image's is {[height, width]}")
    counts = rle.get("counts")
    if isinstance(counts, list):
        runs = np.array(counts)
    elif isinstance(counts, str):
        runs = _decompress(counts)
    else:
        raise ValueError("its counts are neither a list nor a string")
    if runs.ndim != 1 or runs.dtype.kind != "i" or (runs < 0).any():
        raise ValueError("its counts are not whole numbers of at least 0")
    if runs.sum() != width * height:
        raise ValueError(
            f"its counts add up to {runs.sum()} pixels, the image has {width * height}"
        )
    if isinstance(counts, list):
        rle = mask_util.frPyObjects(rle, height, width)
    x, y, w, h = mask_util.toBbox(rle)
    return x, y, x + w, y + h


def _decompress(counts: str) -> np.ndarray:
    """Run lengths of COCO's compressed strings.

    Numbers are in groups of characters, each with five bits, lowest first, and a flag that another
    one follows; from the fourth on they are differences to the one before the last.
    """
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("its counts are no compressed run lengths")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("its counts are no compressed run lengths")
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << 5 * place, starts)
    runs -= (codes[ends] & 16 > 0) * (1 << 5 * lengths)  # two's complement
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs
