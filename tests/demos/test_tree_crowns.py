"""Tile geometry and COCO files of the tree crown data set, on a synthetic image."""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# The project's folder is not a package: its scripts find each other as neighbours.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "projects" / "tree_crowns"))

import prepare_data as crowns  # noqa: E402
import tiling  # noqa: E402

pytestmark = pytest.mark.run

SIZE = (230, 170)  # (width, height)
BOXES = [
    (5, 8, 25, 30),
    (90, 60, 130, 95),
    (200, 140, 230, 170),
    (96, 2, 104, 12),
    (40, 100, 60, 120),
]


def draw(size: tuple[int, int], boxes: list[tuple[int, int, int, int]]) -> Image.Image:
    """White boxes on black: where a box is can be read off the pixels."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = 255
    return Image.fromarray(pixels)


def voc(size: tuple[int, int], boxes: list[tuple[int, int, int, int]]) -> str:
    items = "".join(
        f"<object><name>Tree</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    return (
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"{items}</annotation>"
    )


@pytest.mark.parametrize(("tile_size", "overlap"), [(100, 40), (100, 0), (64, 16), (0, 0)])
def test_boxes_agree_with_counted_pixels(tile_size, overlap):
    """Each box alone: what the arithmetic keeps and clips is what its pixels show in the tile."""
    min_area = 0.4
    for tile in tiling.tile_boxes(SIZE, tile_size, overlap):
        for box in BOXES:
            whole = np.asarray(draw(SIZE, [box]))[..., 0] > 0
            rows, columns = np.nonzero(whole[tile[1] : tile[3], tile[0] : tile[2]])
            kept = list(tiling.boxes_in_tile([box], tile, min_area))
            if rows.size == 0 or rows.size < min_area * whole.sum():
                assert kept == []
            else:
                corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert kept == [corners]


def test_every_box_lies_in_some_tile_whole():
    """With an overlap larger than the boxes, no tree is only ever seen cut."""
    tiles = list(tiling.tile_boxes(SIZE, 100, 50))
    for box in BOXES:
        assert any(tiling.intersect(box, tile) == box for tile in tiles)


def test_boxes_that_coincide_in_a_tile_appear_once():
    boxes = [(90, 10, 110, 20), (90, 10, 112, 20), (90, 10, 110, 20)]
    assert list(tiling.boxes_in_tile(boxes, (0, 0, 100, 100), 0.4)) == [(90, 10, 100, 20)]


def test_voc_is_read():
    assert crowns.parse_voc(voc(SIZE, BOXES)) == (SIZE, BOXES)
    with pytest.raises(ValueError, match="xmax"):
        crowns.parse_voc(voc(SIZE, BOXES).replace("xmax", "right"))


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A stand-in for the wheel, with images of the same names and other content."""
    path = tmp_path / crowns.WHEEL_NAME
    boxes = {"TRAIN": BOXES, "VAL": BOXES[:3], "EXTRA": BOXES[:1]}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(crowns.WHEEL_LICENCE, "MIT")
        for name, its_boxes in boxes.items():
            image = getattr(crowns, name)
            buffer = io.BytesIO()
            draw(SIZE, its_boxes).save(buffer, "PNG")
            archive.writestr(f"deepforest/data/{image.source}.png", buffer.getvalue())
            archive.writestr(f"deepforest/data/{image.source}.xml", voc(SIZE, its_boxes))
            small = crowns.Source(image.name, image.source, SIZE, len(its_boxes))
            monkeypatch.setattr(crowns, name, small)
    monkeypatch.setattr(
        crowns, "WHEEL_SHA256", crowns.hashlib.sha256(path.read_bytes()).hexdigest()
    )
    return path


def test_data_set_is_valid_coco(tmp_path, wheel):
    output = tmp_path / "data" / "crowns"
    result = crowns.prepare(output, tile_size=100, overlap=50, wheel=wheel)
    assert not result["reused"]
    for split, its_boxes in (("train", BOXES), ("val", BOXES[:3])):
        part = result[split]
        coco = json.loads(part["annotations"].read_text())
        assert coco["categories"] == [{"id": 1, "name": "tree"}]
        images = {image["id"]: image for image in coco["images"]}
        assert len(images) == len(coco["images"]) == part["images"]
        assert len({a["id"] for a in coco["annotations"]}) == part["boxes"]
        assert part["boxes_in_no_tile"] == 0
        for image in images.values():
            with Image.open(part["image_root"] / image["file_name"]) as tile:
                assert tile.mode == "RGB"
                assert tile.size == (image["width"], image["height"])
        for annotation in coco["annotations"]:
            assert "segmentation" not in annotation and annotation["iscrowd"] == 0
            image = images[annotation["image_id"]]
            x, y, width, height = annotation["bbox"]
            assert annotation["area"] == width * height
            assert min(x, y) >= 0 and x + width <= image["width"] and y + height <= image["height"]
            left, top = image["offset"]
            back = (left + x, top + y, left + x + width, top + y + height)
            assert any(tiling.intersect(back, box) == back for box in its_boxes)
            # The pixels under the box are those of the tree, but for JPEG's noise.
            with Image.open(part["image_root"] / image["file_name"]) as tile:
                assert np.asarray(tile.crop((x, y, x + width, y + height))).mean() > 250
    names = [path.name for path in result["unlabelled"]["image_root"].iterdir()]
    assert len(names) == result["unlabelled"]["images"]
    assert not any(name.startswith(crowns.VAL.name) for name in names)


def test_complete_data_set_is_reused_and_a_damaged_one_replaced(tmp_path, wheel):
    output = tmp_path / "crowns"
    first = crowns.prepare(output, tile_size=100, overlap=50, wheel=wheel)
    again = crowns.prepare(output, tile_size=100, overlap=50, wheel=tmp_path / "not-needed")
    assert again == {**first, "reused": True}

    next((output / "train").iterdir()).unlink()
    assert crowns.prepare(output, tile_size=100, overlap=50, wheel=wheel) == first
    other = crowns.prepare(output, tile_size=0, val_overlap=0, wheel=wheel)
    assert other["train"]["images"] == 1 and not other["reused"]
    # Nothing unfinished is left beside it.
    assert {path.name for path in tmp_path.iterdir()} == {"crowns", wheel.name}


def test_foreign_folder_is_left_alone(tmp_path, wheel):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="mine"):
        crowns.prepare(tmp_path / "mine", wheel=wheel)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_wrong_wheel_is_named(tmp_path, wheel, capsys):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    assert crowns.main(["--output", str(tmp_path / "crowns"), "--wheel", str(wheel)]) == 1
    assert crowns.WHEEL_NAME in capsys.readouterr().err
    assert not (tmp_path / "crowns").exists()


def test_unexpected_content_is_reported(tmp_path, wheel, monkeypatch):
    monkeypatch.setattr(crowns, "VAL", crowns.Source("v", crowns.VAL.source, SIZE, 99))
    with pytest.raises(ValueError, match="99 boxes"):
        crowns.prepare(tmp_path / "crowns", tile_size=100, overlap=50, wheel=wheel)
    assert not (tmp_path / "crowns").exists()


def test_failed_download_names_file_and_remedy(tmp_path, monkeypatch):
    """pip is told to look nowhere, so no network is touched."""
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", ""), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(RuntimeError, match="(?s)deepforest-2.1.0.*--wheel FILE"):
        crowns.prepare(tmp_path / "crowns")
    assert list(tmp_path.iterdir()) == []
