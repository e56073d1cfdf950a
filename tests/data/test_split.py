"""Dividing a COCO file by its images."""

import json

import pytest

from lomar_det.data import check, split

# two images of one id
TWICE = json.dumps(
    {
        "images": [{"id": 1, "file_name": "x.jpg", "width": 9, "height": 9}] * 2,
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
)


def test_the_parts_make_up_the_file(tmp_path, drawn_set):
    whole = json.loads(drawn_set[0].read_text()) | {"info": {"description": "drawn"}}
    drawn_set[0].write_text(json.dumps(whole))
    paths = [tmp_path / "new" / name for name in ("train.json", "val.json")]
    assert split.main([*map(str, (drawn_set[0], *paths)), "--share", "0.67"]) == 0
    first, second = (json.loads(path.read_text()) for path in paths)
    assert [len(part["images"]) for part in (first, second)] == [4, 2]
    for key in ("images", "annotations"):
        both = sorted(first[key] + second[key], key=lambda entry: entry["id"])
        assert both == sorted(whole[key], key=lambda entry: entry["id"])
    for part in (first, second):
        assert {image["id"] for image in part["images"]} >= {
            annotation["image_id"] for annotation in part["annotations"]
        }
        assert {**part, "images": 0, "annotations": 0} == {**whole, "images": 0, "annotations": 0}
    for path in paths:
        assert check.main([str(path), str(drawn_set[1]), "--train-only"]) == 0


def test_the_seed_decides(drawn_set):
    data = json.loads(drawn_set[0].read_text())
    drawn = [
        tuple(image["id"] for image in split.split_coco(data, 0.5, seed)[0]["images"])
        for seed in (0, 0, *range(1, 6))
    ]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    assert [len(split.split_coco(data, share)[0]["images"]) for share in (0.01, 0.99)] == [1, 5]


@pytest.mark.parametrize("content", ["no json", "[]", '{"images": [], "annotations": []}', TWICE])
def test_what_cannot_be_divided_is_refused_and_kept(tmp_path, capsys, content):
    path = tmp_path / "all.json"
    path.write_text(content)
    assert split.main([str(path), str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert str(path) in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["all.json"]
    with pytest.raises(SystemExit):
        split.main([str(path), str(path), str(tmp_path / "b.json")])
    assert path.read_text() == content
