"""Which detections of overlapping tiles are the same object.

Boxes are (x0, y0, x1, y1) in pixels of the image, the right and lower edges excluded.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_area

BORDER = 0.01  # share of a tile's side; a box this close to a border of the tile counts as cut


def group_detections(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    tile_ids: Tensor,
    tiles: Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
) -> list[list[int]]:
    """Which detections of overlapping tiles make up the objects of an image.

    1. A detection that an inner border of its tile cuts is dropped if it lies well inside another
       tile: the other tile saw more of the object.
    2. Non-maximum suppression per class removes duplicates among the detections that no border
       cuts.
    3. A remaining cut detection was cut in every tile, because it is larger than the overlap. It
       belongs to the same object as a detection of its class in another tile if, in the area that
       both tiles see, their intersection over union reaches ``threshold``. If no border cuts one
       of the detections of an object, that detection alone is the object.

    Args:
        boxes: (N, 4) in pixels of the image.
        scores, classes: (N,).
        tile_ids: (N,) index into ``tiles`` of each detection's tile.
        tiles: (T, 4) all tiles.
        size: (width, height) of the image.
        threshold: Intersection over union from which two boxes are the same.

    Returns:
        The objects, best score first, each as a list of indices of its detections.
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
    """The tiles less a margin along each border that is not the image's; (T, 4)."""
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
    """Intersection over union of each box of ``a`` with the one in the same row of ``b``; (N,)."""
    both = box_area(_intersect(a, b))
    return both / (box_area(a) + box_area(b) - both).clamp(min=1e-9)


def _components(neighbours: dict[int, list[int]]) -> Iterator[list[int]]:
    """Yields groups of indices that are connected, directly or indirectly."""
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
