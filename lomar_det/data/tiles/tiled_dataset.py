"""Training on tiles of large images, from one COCO file of whole images; nothing is written.

Boxes are detectron2's: (x0, y0, x1, y1) of a tile in pixels of its image, (x, y, width, height) of
an object, whose ``bbox_mode`` says so.
"""

import copy
import math
import random
from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np
import pycocotools.mask as coco_mask
import shapely
from detectron2.structures import BoxMode

from ...errors import UserError
from ..images import MAX_MEGAPIXELS
from . import Box, resolve_overlap, tile_boxes

# A tile of data.tile_size=auto is so large that its side is this many times that of an object.
OBJECTS_ACROSS = 16


class Tiles:
    """Images of a detection set -> their tiles, each as an image of its own.

    Args:
        size: Side of a tile in pixels; None leaves the images whole.
        overlap: Pixels that neighbours share; None: a quarter of the side.
        min_visible: Share of an object's box that must lie in a tile for the object to count there.
        empty: Tiles without objects, for each tile with some; always the same ones, at random.

    Raises:
        UserError: the overlap is not smaller than the tile.
    """

    def __init__(
        self,
        size: int | None = None,
        overlap: int | None = None,
        min_visible: float = 0.4,
        empty: float = 0.1,
    ):
        self.size = size
        if size is not None:
            self.overlap = resolve_overlap(size, overlap)
        self.min_visible, self.empty = min_visible, empty

    def __call__(self, dataset: Sequence[dict]) -> Sequence[dict]:
        """Tiles with objects in the order of the images, then some without.

        A tile is a dict of detectron2's standard format with the key ``tile``; its annotations are
        still those of the image, and `cut_annotations` cuts them. Tiles that only have objects of
        which too little is visible are left out: they would teach that there is none.
        """
        if self.size is None:
            return dataset
        full, empty = [], []
        for image in dataset:
            boxes = np.array([_corners(a) for a in image["annotations"]]).reshape(-1, 4)
            for tile in tile_boxes((image["width"], image["height"]), self.size, self.overlap):
                entry = image | {"tile": tile, "annotations": []}
                entry |= {"width": tile[2] - tile[0], "height": tile[3] - tile[1]}
                share = visible_shares(boxes, tile)
                kept = np.nonzero((share > 0) & (share >= self.min_visible))[0]
                entry["annotations"] = [image["annotations"][i] for i in kept]
                if any(not a.get("iscrowd", 0) for a in entry["annotations"]):
                    full.append(entry)
                elif not share.any():
                    empty.append(entry)
        number = min(len(empty), round(self.empty * len(full)))
        return full + random.Random(0).sample(empty, number)


def visible_shares(boxes: np.ndarray, tile: Box) -> np.ndarray:
    """The share of each box (N, 4) of corners that lies in the tile; (N,)."""
    start, stop = np.maximum(boxes[:, :2], tile[:2]), np.minimum(boxes[:, 2:], tile[2:])
    inside = (stop - start).clip(0).prod(axis=1)
    return inside / (boxes[:, 2:] - boxes[:, :2]).clip(1e-9).prod(axis=1)


def cut_annotations(image: dict) -> Iterator[dict]:
    """The annotations of a tile, in its pixels; masks are cut at its borders."""
    x0, y0, x1, y1 = image["tile"]
    for annotation in image["annotations"]:
        own = copy.deepcopy(annotation)
        box = np.array(_corners(annotation)) - (x0, y0, x0, y0)
        own["bbox"] = box.clip(0, (x1 - x0, y1 - y0) * 2).tolist()
        own["bbox_mode"] = BoxMode.XYXY_ABS
        mask = annotation.get("segmentation")
        if isinstance(mask, dict):
            own["segmentation"] = _cut_run_lengths(mask, image["tile"], image["file_name"])
        elif mask is not None:
            own["segmentation"] = list(_cut_polygons(mask, image["tile"]))
            if not own["segmentation"]:  # the box reaches into the tile, the object does not
                continue
        yield own


def _cut_polygons(polygons: list, tile: Box) -> Iterator[np.ndarray]:
    """Polygons in pixels of the tile; one that lies inside stays as it is."""
    width, height = tile[2] - tile[0], tile[3] - tile[1]
    frame = shapely.box(0, 0, width, height)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=float).reshape(-1, 2) - tile[:2]
        if (points >= 0).all() and (points <= (width, height)).all():
            yield points.reshape(-1)
            continue
        if len(points) < 3:
            continue
        parts = shapely.make_valid(shapely.Polygon(points)).intersection(frame)
        for part in shapely.get_parts(parts):
            if part.geom_type == "Polygon" and part.area > 0:
                yield shapely.get_coordinates(part.exterior)[:-1].reshape(-1)


def _cut_run_lengths(mask: dict, tile: Box, name: str) -> dict:
    height, width = mask["size"]
    if height * width > MAX_MEGAPIXELS * 1e6:
        raise UserError(
            f"{name}: a run-length mask of {width} x {height} pixels would take "
            f"{height * width / 1e9:.1f} GB; give polygons for images of that size"
        )
    if isinstance(mask["counts"], list):
        mask = coco_mask.frPyObjects(mask, height, width)
    part = coco_mask.decode(mask)[tile[1] : tile[3], tile[0] : tile[2]]
    return coco_mask.encode(np.asfortranarray(part))


def _corners(annotation: dict) -> list[float]:
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def choose_tile_size(dataset: Sequence[dict], image_size: int) -> int:
    """The side of a tile that shows objects at a good size: what ``data.tile_size=auto`` means.

    The typical object measures a sixteenth of it; it is a quarter to eight times as large as what
    the model sees.

    Args:
        dataset: In detectron2's standard format.
        image_size: Side that the model sees.
    """
    sides = [
        math.sqrt(max(0.0, (x1 - x0) * (y1 - y0)))
        for image in dataset
        for x0, y0, x1, y1 in map(_corners, image["annotations"])
    ]
    side = OBJECTS_ACROSS * median(sides) if sides else image_size
    return 32 * round(min(max(side, image_size / 4), 8 * image_size) / 32) or 32
