"""Detections for label tools and maps: outlines are those of the masks, places those of rasters."""

import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import rasterio
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from rasterio.transform import from_origin
from shapely.geometry import shape

from lomar_det.data import check
from lomar_det.detection.formats import CocoDataset, outlines, read_georeference, to_geojson
from lomar_det.detection.instance_masks import InstanceMasks

CATEGORIES = [{"id": 3, "name": "disc"}, {"id": 7, "name": "ring"}]
SIZE = (120, 160)  # (height, width)


def disc(y, x, r, hole=0.0):
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    distance = (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2
    return (distance <= r**2) & (distance >= hole**2)


@pytest.fixture
def instances():
    """A disc, a ring at the border, and two discs that are one object."""
    masks = [disc(40, 50, 20), disc(85, 25, 30, 12), disc(60, 120, 9) | disc(90, 140, 9)]
    found = Instances(SIZE)
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
    rles = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    found.pred_masks = InstanceMasks(SIZE, [(0, 0)] * 3, rles)
    return found, masks


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_outlines_are_those_of_the_pixels(seed):
    rng = np.random.default_rng(seed)
    coarse = rng.random((6, 8)) < 0.4
    mask = coarse.repeat(10, axis=0).repeat(10, axis=1)
    parts = list(outlines(mask))
    again = rasterize([(part, 1) for part in parts], mask.shape) if parts else np.zeros(mask.shape)
    # the outline cuts corners by half a pixel
    assert (again.astype(bool) != mask).mean() < 0.02
    assert abs(sum(part.area for part in parts) - mask.sum()) <= 0.02 * mask.size


def test_a_coco_data_set_of_detections_is_one_that_we_train_on(tmp_path, instances):
    found, masks = instances
    dataset = CocoDataset(CATEGORIES)
    dataset.add(5, "x.png", found)
    rasterio_free = tmp_path / "images"
    rasterio_free.mkdir()
    from PIL import Image

    Image.new("RGB", SIZE[::-1]).save(rasterio_free / "x.png")
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(dataset.content))
    assert check.main([str(path), str(rasterio_free)]) == 0
    assert [a["category_id"] for a in dataset.content["annotations"]] == [3, 7, 3]
    for annotation, mask in zip(dataset.content["annotations"], masks, strict=True):
        parts = coco_mask.frPyObjects(annotation["segmentation"], *SIZE)
        drawn = coco_mask.decode(coco_mask.merge(parts)).astype(bool)
        if annotation["category_id"] == 7:  # its hole is filled: COCO's polygons have none
            mask = disc(85, 25, 30)
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.93
    assert len(dataset.content["annotations"][2]["segmentation"]) == 2


def test_geojson_keeps_holes_and_parts(instances):
    found, masks = instances
    content = to_geojson(found, CATEGORIES)
    kinds = [feature["geometry"]["type"] for feature in content["features"]]
    assert kinds == ["Polygon", "Polygon", "MultiPolygon"]
    assert [f["properties"]["class"] for f in content["features"]] == ["disc", "ring", "disc"]
    for feature, mask in zip(json.loads(json.dumps(content))["features"], masks, strict=True):
        drawn = rasterize([(feature["geometry"], 1)], SIZE).astype(bool)
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.95


def test_boxes_alone_are_outlines(instances):
    found = instances[0]
    found.remove("pred_masks")
    content = to_geojson(found, CATEGORIES)
    bounds = [shape(feature["geometry"]).bounds for feature in content["features"]]
    assert np.allclose(bounds, found.pred_boxes.tensor)
    dataset = CocoDataset(CATEGORIES)
    dataset.add(1, "x.png", found)
    assert all("segmentation" not in a for a in dataset.content["annotations"])


def test_a_raster_puts_them_in_its_own_place(tmp_path, instances):
    """What a GIS does with the file: its own transform takes coordinates back to pixels."""
    transform = from_origin(500_000.0, 4_980_000.0, 0.3, 0.3)
    layout = {"width": SIZE[1], "height": SIZE[0], "count": 3, "dtype": "uint8"}
    with rasterio.open(
        tmp_path / "x.tif", "w", "GTiff", **layout, crs="EPSG:32612", transform=transform
    ) as file:
        file.write(np.zeros((3, *SIZE), np.uint8))
    found, masks = instances
    content = to_geojson(found, CATEGORIES, read_georeference(tmp_path / "x.tif"))
    assert "32612" in content["crs"]["properties"]["name"]
    for feature, mask in zip(content["features"], masks, strict=True):
        drawn = rasterize([(feature["geometry"], 1)], SIZE, transform=transform).astype(bool)
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.95


def test_an_image_without_a_place_has_none(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.tif")
    assert read_georeference(tmp_path / "x.png") is None
    assert read_georeference(tmp_path / "x.tif") is None
