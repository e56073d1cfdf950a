"""Cuts large pictures into tiles, and finds out which detections of tiles are the same object.

Boxes are (x0, y0, x1, y1) in pixels of the picture, the right and lower edges excluded.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_area

from .errors import UserError

Box = tuple[int, int, int, int]

BORDER = 0.01  # a box that comes as near to a tile's border as this share of its side is cut there


def tile_spans(length: int, tile_size: int, overlap: int) -> list[tuple[int, int]]:
    """Cuts one side of a picture into spans ``(start, stop)`` that cover it.

    With ``overlap`` > 0, all spans have the full tile size (or the picture's, if smaller), are
    evenly spaced and share at least ``overlap`` pixels. With 0 they share nothing: the side is cut
    into equal parts of at most ``tile_size``, so that no sliver is left at the end.

    Args:
        length: The picture's width or height.
        tile_size: Largest span; 0 for the whole side.
        overlap: Least number of pixels that neighbours share.

    Raises:
        UserError: a negative size, or an overlap that is not smaller than the tile.
    """
    if tile_size < 0 or overlap < 0:
        raise UserError(f"tile size ({tile_size}) and overlap ({overlap}) must not be negative")
    if tile_size == 0 or length <= tile_size:
        return [(0, length)]
    if overlap >= tile_size:
        raise UserError(
            f"overlap ({overlap}) must be smaller than the tile size ({tile_size}); "
            "choose a smaller overlap or larger tiles"
        )
    if overlap == 0:
        count = math.ceil(length / tile_size)
        edges = [round(i * length / count) for i in range(count + 1)]
        return list(zip(edges[:-1], edges[1:], strict=True))
    count = math.ceil((length - overlap) / (tile_size - overlap))
    # Rounded down, neighbours are never further apart than tile_size - overlap.
    starts = [i * (length - tile_size) // (count - 1) for i in range(count)]
    return [(start, start + tile_size) for start in starts]


def tile_boxes(size: tuple[int, int], tile_size: int, overlap: int) -> Iterator[Box]:
    """Yields the tiles of a picture of ``size`` (width, height), row by row."""
    for y0, y1 in tile_spans(size[1], tile_size, overlap):
        for x0, x1 in tile_spans(size[0], tile_size, overlap):
            yield (x0, y0, x1, y1)


def group_detections(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    tile_ids: Tensor,
    tiles: Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
) -> list[list[int]]:
    """Which detections of overlapping tiles make up the objects of a picture.

    1. A detection that an inner border of its tile cuts is dropped if it lies well inside another
       tile: that one saw the same and more, and decides.
    2. Of detections that no border cuts, duplicates go by non-maximum suppression per class.
    3. What is left was cut in every tile, since it is larger than the overlap. It is the same
       object as a detection of that class in another tile if both cover the same part, by
       ``threshold``, of the area that both tiles see. Such parts are one object; are they parts
       of a detection that no border cuts, they are dropped for it.

    Args:
        boxes: (N, 4) in pixels of the picture.
        scores, classes: (N,).
        tile_ids: (N,) index into ``tiles`` of the tile that each was detected in.
        tiles: (T, 4) all tiles.
        size: (width, height) of the picture.
        threshold: Intersection over union from which two boxes are the same.

    Returns:
        The objects, best score first, each as the indices of the detections that it consists of.
    """
    tiles = tiles.to(boxes)
    inside = _without_inner_borders(tiles, size)
    own = inside[tile_ids]
    is_cut = (boxes[:, :2] < own[:, :2]).any(1) | (boxes[:, 2:] > own[:, 2:]).any(1)
    whole = torch.nonzero(~is_cut)[:, 0]
    whole = whole[batched_nms(boxes[whole], scores[whole], classes[whole], threshold)]
    cut = torch.tensor(
        [i for i in torch.nonzero(is_cut)[:, 0].tolist() if not _contains(inside, boxes[i]).any()],
        dtype=torch.long,
    )
    candidates = torch.cat([whole, cut])
    neighbours: dict[int, list[int]] = {i: [] for i in candidates.tolist()}
    for i in cut.tolist():
        same = candidates[
            (classes[candidates] == classes[i]) & (tile_ids[candidates] != tile_ids[i])
        ]
        common = _intersect(tiles[tile_ids[same]], tiles[tile_ids[i]])
        a, b = _intersect(common, boxes[i]), _intersect(common, boxes[same])
        for j in same[_paired_iou(a, b) >= threshold].tolist():
            neighbours[i].append(j)
            neighbours[j].append(i)
    intact = set(whole.tolist())
    groups = []
    for group in _components(neighbours):
        members = [[i] for i in group if i in intact]
        groups += members or [group]
    return sorted(groups, key=lambda group: -scores[group].max().item())


def _without_inner_borders(tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """The tiles less a margin along each border that is not the picture's; (T, 4)."""
    margin = BORDER * (tiles[:, 2:] - tiles[:, :2])
    start = torch.where(tiles[:, :2] > 0, tiles[:, :2] + margin, -math.inf)
    stop = torch.where(tiles[:, 2:] < tiles.new_tensor(size), tiles[:, 2:] - margin, math.inf)
    return torch.cat([start, stop], dim=1)


def _contains(tiles: Tensor, box: Tensor) -> Tensor:
    return (tiles[:, :2] <= box[:2]).all(1) & (box[2:] <= tiles[:, 2:]).all(1)


def _intersect(a: Tensor, b: Tensor) -> Tensor:
    start, stop = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    return torch.cat([start, torch.maximum(start, stop)], dim=-1)


def _paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, where `box_iou` has every pair; 0 where one is empty."""
    both = box_area(_intersect(a, b))
    return both / (box_area(a) + box_area(b) - both).clamp(min=1e-9)


def _components(neighbours: dict[int, list[int]]) -> Iterator[list[int]]:
    """Groups of what is connected, directly or not."""
    seen: set[int] = set()
    for start in neighbours:
        group, stack = [], [start]
        while stack:
            i = stack.pop()
            if i not in seen:
                seen.add(i)
                group.append(i)
                stack += neighbours[i]
        if group:
            yield group
