"""Which detections of overlapping tiles are the same object.

Boxes are (x0, y0, x1, y1) in pixels of the image, the right and lower edges excluded.
"""

import math
from collections.abc import Iterator

import torch
from shapely import STRtree, box
from torch import Tensor
from torchvision.ops import box_area

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
    whole = _suppress(boxes, scores, classes, torch.nonzero(~is_cut)[:, 0], threshold)
    cut = _seen_nowhere_else(boxes, torch.nonzero(is_cut)[:, 0], inside)
    candidates = torch.cat([whole, cut])
    first, second = _touching(boxes[cut], boxes[candidates])
    i, j = cut[first], candidates[second]
    possible = (classes[i] == classes[j]) & (tile_ids[i] != tile_ids[j])
    i, j = i[possible], j[possible]
    common = _intersect(tiles[tile_ids[i]], tiles[tile_ids[j]])
    same = _paired_iou(_intersect(common, boxes[i]), _intersect(common, boxes[j])) >= threshold
    neighbours: dict[int, list[int]] = {i: [] for i in candidates.tolist()}
    for a, b in zip(i[same].tolist(), j[same].tolist(), strict=True):
        neighbours[a].append(b)
        neighbours[b].append(a)
    intact = set(whole.tolist())
    groups = []
    for group in _components(neighbours):
        members = [[i] for i in group if i in intact]
        groups += members or [group]
    values = scores.tolist()
    return sorted(groups, key=lambda group: -max(values[i] for i in group))


def _suppress(
    boxes: Tensor, scores: Tensor, classes: Tensor, chosen: Tensor, threshold: float
) -> Tensor:
    """Non-maximum suppression per class among the chosen ones; best score first.

    Only boxes that touch are compared: an image in thousands of tiles has 100,000s of them.
    """
    order = chosen[scores[chosen].argsort(descending=True, stable=True)]
    first, second = _touching(boxes[order], boxes[order])
    later = (first < second) & (classes[order[first]] == classes[order[second]])
    first, second = first[later], second[later]
    same = _paired_iou(boxes[order[first]], boxes[order[second]]) > threshold
    first, second = first[same], second[same]
    kept = torch.ones(len(order), dtype=torch.bool)
    by_score = first.argsort(stable=True)  # each is settled before it suppresses others
    for better, worse in zip(first[by_score].tolist(), second[by_score].tolist(), strict=True):
        if kept[better]:
            kept[worse] = False
    return order[kept]


def _seen_nowhere_else(boxes: Tensor, chosen: Tensor, inside: Tensor) -> Tensor:
    """Those of the chosen ones that lie well inside no tile."""
    which, tile = _touching(boxes[chosen], inside)
    start, stop = inside[tile, :2], inside[tile, 2:]
    own = boxes[chosen[which]]
    contained = (start <= own[:, :2]).all(1) & (own[:, 2:] <= stop).all(1)
    is_seen = torch.zeros(len(chosen), dtype=torch.bool)
    is_seen[which[contained]] = True
    return chosen[~is_seen]


def _touching(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (i, j) of all boxes a[i] and b[j] that have a point in common."""
    far = 1e9  # a tree wants finite borders
    shapes = [box(*t.double().clamp(-far, far).numpy().T) for t in (a, b)]
    i, j = STRtree(shapes[1]).query(shapes[0], predicate="intersects")
    return torch.from_numpy(i), torch.from_numpy(j)


def _without_inner_borders(tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """The tiles less a margin along each border that is not the image's; (T, 4)."""
    margin = BORDER * (tiles[:, 2:] - tiles[:, :2])
    start = torch.where(tiles[:, :2] > 0, tiles[:, :2] + margin, -math.inf)
    stop = torch.where(tiles[:, 2:] < tiles.new_tensor(size), tiles[:, 2:] - margin, math.inf)
    return torch.cat([start, stop], dim=1)


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
