"""Cuts annotated images into tiles and writes them as a COCO data set of boxes.

Boxes are ``(x0, y0, x1, y1)`` in pixels, the right and lower edges excluded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lomar_det.data.tiles import Box, tile_boxes


def box_area(box: Box) -> int:
    """Area of a box; 0 where it is empty."""
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def intersect(a: Box, b: Box) -> Box:
    """Common part of two boxes; of area 0 where there is none."""
    return (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))


def boxes_in_tile(boxes: Sequence[Box], tile: Box, min_area: float) -> dict[Box, int]:
    """Clips boxes to a tile and keeps those of which enough stays.

    Args:
        boxes: boxes in image coordinates.
        tile: the tile, in image coordinates.
        min_area: least share of a box's own area that must lie inside the tile.

    Returns:
        The boxes in tile coordinates, each with the index of the box it comes from. Boxes that
        coincide after clipping appear once.
    """
    kept: dict[Box, int] = {}
    for index, box in enumerate(boxes):
        part = intersect(box, tile)
        if box_area(part) == 0 or box_area(part) < min_area * box_area(box):
            continue
        left, top = tile[:2]
        kept.setdefault((part[0] - left, part[1] - top, part[2] - left, part[3] - top), index)
    return kept


def write_tiles(
    image: Image.Image, name: str, folder: Path, tile_size: int, overlap: int
) -> list[tuple[str, Box]]:
    """Writes the tiles of one image as JPEG; returns their file names and places."""
    folder.mkdir(parents=True, exist_ok=True)
    image = image.convert("RGB")
    written = []
    for tile in tile_boxes(image.size, tile_size, overlap):
        file_name = f"{name}_y{tile[1]:04d}_x{tile[0]:04d}.jpg"
        image.crop(tile).save(folder / file_name, quality=95)
        written.append((file_name, tile))
    return written


def write_coco(
    tiles: Sequence[tuple[str, Box]],
    boxes: Sequence[Box],
    min_area: float,
    path: Path,
    category: str,
    description: str,
) -> dict[str, int]:
    """Writes a COCO annotation file without masks for the tiles of one image.

    Args:
        tiles: file names and places, as `write_tiles` returns them.
        boxes: boxes in image coordinates, all of one category.
        min_area: see `boxes_in_tile`.
        path: file to write.
        category: name of the one category.
        description: goes to the file's ``info``.

    Returns:
        Number of tiles, of annotations, and of boxes that no tile holds enough of.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    seen: set[int] = set()
    for image_id, (file_name, tile) in enumerate(tiles, start=1):
        x0, y0, x1, y1 = tile
        images.append(
            {
                "id": image_id,
                "file_name": file_name,
                "width": x1 - x0,
                "height": y1 - y0,
                "offset": [x0, y0],  # not COCO: the tile's place in the image
            }
        )
        kept = boxes_in_tile(boxes, tile, min_area)
        seen.update(kept.values())
        for left, top, right, bottom in kept:
            width, height = right - left, bottom - top
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    coco = {
        "info": {"description": description},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": category}],
    }
    path.write_text(json.dumps(coco), encoding="utf-8")
    return {
        "images": len(images),
        "boxes": len(annotations),
        "boxes_in_no_tile": len(boxes) - len(seen),
    }
