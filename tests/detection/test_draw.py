"""Sheets of detections beside the ground truth."""

import json

import numpy as np
from PIL import Image

from lomar_det.detection.draw import detections_sheet


def test_a_sheet_shows_detections_of_a_sufficient_score(tmp_path, drawn_set):
    image = json.loads(drawn_set[0].read_text())["images"][0]
    found = {"image_id": image["id"], "category_id": 3, "bbox": [5, 5, 30, 20]}
    sheets = {}
    for name, detections in {
        "none": [],
        "low": [found | {"score": 0.4}],
        "high": [found | {"score": 0.6}],
    }.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(detections))
        # ``one`` never has any, so that only the third column can differ
        (tmp_path / "empty.json").write_text("[]")
        results = {"one": tmp_path / "empty.json", "two": path}
        sheet = detections_sheet(*drawn_set, results, tmp_path / f"{name}.png", max_images=2)
        sheets[name] = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    width = sheets["none"].shape[1]
    assert (sheets["none"] == sheets["low"]).all()
    changed = np.nonzero((sheets["none"] != sheets["high"]).any((0, 2)))[0]
    assert changed.size and changed.min() > width * 2 // 3
