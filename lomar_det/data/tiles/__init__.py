"""Cuts large images into tiles.

Boxes are (x0, y0, x1, y1) in pixels of the image, the right and lower edges excluded.
"""

import math
from collections.abc import Iterator

from ...errors import UserError

Box = tuple[int, int, int, int]


def resolve_overlap(tile_size: int, overlap: int | None) -> int:
    """The pixels that neighbouring tiles share: a quarter of a tile unless a number is given.

    Raises:
        UserError: see `check_tiling`.
    """
    overlap = tile_size // 4 if overlap is None else overlap
    check_tiling(tile_size, overlap)
    return overlap


def tile_spans(length: int, tile_size: int, overlap: int) -> list[tuple[int, int]]:
    """Cuts one side of an image into spans ``(start, stop)`` that cover it.

    With ``overlap`` > 0, all spans have the full tile size (or the image's, if smaller), are
    evenly spaced and share at least ``overlap`` pixels. With 0 they share nothing: the side is cut
    into equal parts of at most ``tile_size``, so that no sliver is left at the end.

    Args:
        length: The image's width or height.
        tile_size: Largest span; 0 for the whole side.
        overlap: Least number of pixels that neighbours share.

    Raises:
        UserError: a negative size, or an overlap that is not smaller than the tile.
    """
    check_tiling(tile_size, overlap)
    if tile_size == 0 or length <= tile_size:
        return [(0, length)]
    if overlap == 0:
        count = math.ceil(length / tile_size)
        edges = [round(i * length / count) for i in range(count + 1)]
        return list(zip(edges[:-1], edges[1:], strict=True))
    count = math.ceil((length - overlap) / (tile_size - overlap))
    # Rounded down, neighbours are never further apart than tile_size - overlap.
    starts = [i * (length - tile_size) // (count - 1) for i in range(count)]
    return [(start, start + tile_size) for start in starts]


def check_tiling(tile_size: int, overlap: int) -> None:
    """Refuses sizes that cut nothing, as `tile_spans` says."""
    if tile_size < 0 or overlap < 0:
        raise UserError(f"tile size ({tile_size}) and overlap ({overlap}) must not be negative")
    if 0 < tile_size <= overlap:
        raise UserError(
            f"overlap ({overlap}) must be smaller than the tile size ({tile_size}); "
            "choose a smaller overlap or larger tiles"
        )


def tile_boxes(size: tuple[int, int], tile_size: int, overlap: int) -> Iterator[Box]:
    """Yields the tiles of an image of ``size`` (width, height), row by row."""
    for y0, y1 in tile_spans(size[1], tile_size, overlap):
        for x0, x1 in tile_spans(size[0], tile_size, overlap):
            yield (x0, y0, x1, y1)
