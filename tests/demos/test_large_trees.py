"""The mosaic of aerial images: its boxes lie on its trees."""

import json
import sys

import numpy as np
import pytest
from helpers.common import ROOT

from lomar_det.data import check
from lomar_det.data.images import load_box

sys.path.insert(0, str(ROOT / "projects" / "tree_crowns"))

import make_large  # noqa: E402

pytestmark = pytest.mark.run


def test_boxes_lie_on_their_trees(tmp_path, monkeypatch):
    monkeypatch.setattr(make_large, "PART", 256)
    pixels = np.zeros((400, 500, 3), np.uint8)
    boxes = [(20, 30, 70, 60), (200, 100, 230, 150), (300, 350, 390, 380), (450, 20, 470, 90)]
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = 210
    image, annotations = make_large.make_large(pixels, boxes, 1000, tmp_path, "x")
    assert check.main([str(annotations), str(tmp_path)]) == 0
    content = json.loads(annotations.read_text())
    assert len(content["annotations"]) > 15
    shape = content["images"][0]
    whole = load_box(image, lambda *_: (0, 0, 1000, 1000), (1000, 1000))
    assert whole.shape == (shape["height"], shape["width"], 3)
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert whole[y : y + height, x : x + width].mean() > 150  # JPEG, and cut at the border
    again = make_large.make_large(pixels, boxes, 1000, tmp_path, "y")[1]
    assert json.loads(again.read_text())["annotations"] == content["annotations"]
