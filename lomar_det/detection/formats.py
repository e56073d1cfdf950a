"""Detections in the formats that label tools and maps read: COCO data sets and GeoJSON.

Outlines go along the borders of pixels. Shapes: H x W pixels of a mask.
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import contourpy
import numpy as np
from detectron2.structures import Instances
from shapely import Polygon
from shapely.affinity import affine_transform
from shapely.geometry import mapping

TOLERANCE = 0.3  # pixels that a simplified outline may be off; more would shift straight sides
FORMATS = ("results", "coco", "geojson")

Points = np.ndarray  # (N, 2), x and y


def outlines(mask: np.ndarray) -> Iterator[Polygon]:
    """The parts of a mask (H, W) as polygons with holes, in its pixels; nothing below a pixel."""
    # A frame of zeros closes outlines at the border; values lie at the centres of pixels.
    padded = np.pad(mask.astype(np.float32), 1)
    contours = contourpy.contour_generator(z=padded, fill_type="OuterOffset").filled(0.5, 2.0)
    for points, offsets in zip(*contours, strict=True):
        rings = [
            points[start:stop] - 0.5 for start, stop in zip(offsets[:-1], offsets[1:], strict=True)
        ]
        part = Polygon(rings[0], rings[1:]).simplify(TOLERANCE)
        if part.area >= 1 and part.geom_type == "Polygon":
            yield part


def instance_polygons(instances: Instances) -> list[list[Polygon]]:
    """Of each instance: the parts of its mask, else its box, in pixels of the image."""
    boxes = instances.pred_boxes.tensor.tolist()
    as_boxes = [[Polygon([(l, t), (r, t), (r, b), (l, b)])] for l, t, r, b in boxes]  # noqa: E741
    if not instances.has("pred_masks"):
        return as_boxes
    found = []
    for (x, y, mask), box in zip(instances.pred_masks.regions(), as_boxes, strict=True):
        parts = [affine_transform(part, (1, 0, 0, 1, x, y)) for part in outlines(mask)]
        found.append(parts or box)
    return found


class CocoDataset:
    """A COCO data set of images and their detections, which label tools import and we train on.

    Args:
        categories: For every class, COCO's ``id`` and ``name``.
    """

    def __init__(self, categories: list[dict]):
        self.content = {
            "info": {"description": "LoMaR-Det detections", "date_created": str(date.today())},
            "images": [],
            "annotations": [],
            "categories": [{"id": c["id"], "name": c["name"]} for c in categories],
        }

    def add(self, image_id: int, file_name: str, instances: Instances) -> None:
        """Adds an image; polygons of masks lose their holes, which the format does not have."""
        height, width = instances.image_size
        image = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        self.content["images"].append(image)
        has_masks = instances.has("pred_masks")
        kinds = instances.pred_classes.tolist()
        parts = instance_polygons(instances)
        boxes, scores = instances.pred_boxes.tensor.tolist(), instances.scores.tolist()
        for kind, score, (x0, y0, x1, y1), own in zip(kinds, scores, boxes, parts, strict=True):
            annotation = {
                "id": len(self.content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": self.content["categories"][kind]["id"],
                "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                "area": round(sum(Polygon(p.exterior).area for p in own), 2),
                "iscrowd": 0,
                "score": round(score, 4),
            }
            if has_masks:
                annotation["segmentation"] = [
                    [round(v, 2) for point in p.exterior.coords[:-1] for v in point] for p in own
                ]
            self.content["annotations"].append(annotation)


def to_geojson(
    instances: Instances, categories: list[dict], place: "Georeference | None" = None
) -> dict:
    """A GeoJSON feature of each instance; as QuPath and QGIS open them.

    Args:
        instances: Of one image.
        categories: For every class, COCO's ``id`` and ``name``.
        place: Where the image lies; None: coordinates are its pixels, y downwards.
    """
    names = [category["name"] for category in categories]
    features = []
    for kind, score, parts in zip(
        instances.pred_classes.tolist(),
        instances.scores.tolist(),
        instance_polygons(instances),
        strict=True,
    ):
        shapes = [mapping(part if place is None else place(part)) for part in parts]
        geometry = (
            shapes[0]
            if len(shapes) == 1
            else {
                "type": "MultiPolygon",
                "coordinates": [shape["coordinates"] for shape in shapes],
            }
        )
        properties = {
            "objectType": "annotation",
            "classification": {"name": names[kind]},
            "class": names[kind],
            "score": round(score, 4),
        }
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    content = {"type": "FeatureCollection", "features": features}
    if place is not None and place.crs:
        content["crs"] = {"type": "name", "properties": {"name": place.crs}}
    return content


class Georeference:
    """From pixels of a raster to its coordinates.

    Attributes:
        crs: The coordinate system, such as ``urn:ogc:def:crs:EPSG::32612``, or its definition in
            WKT if it has no number; empty if unknown.
    """

    def __init__(self, matrix: tuple[float, float, float, float, float, float], crs: str):
        self.matrix, self.crs = matrix, crs

    def __call__(self, part: Polygon) -> Polygon:
        return affine_transform(part, self.matrix)


def read_georeference(path: Path) -> Georeference | None:
    """Where a raster lies, if its file says it and rasterio is installed; None otherwise."""
    try:
        import rasterio
    except ImportError:
        return None
    try:
        with rasterio.open(path) as file:
            transform, crs = file.transform, file.crs
    except (rasterio.errors.RasterioError, OSError):
        return None
    if transform.is_identity:
        return None
    code = crs.to_epsg() if crs else None
    matrix = transform.a, transform.b, transform.d, transform.e, transform.c, transform.f
    definition = crs.to_wkt() if crs else ""
    return Georeference(matrix, f"urn:ogc:def:crs:EPSG::{code}" if code else definition)
