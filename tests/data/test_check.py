"""Broken data sets: reported by the checker; training refuses them clearly, or copes with them."""

import copy
import functools
import json
import math
import time

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, BoxMode, Instances
from helpers.common import draw_instances, tool_args
from PIL import Image

from lomar_det.config.lazy import load_config, with_settings
from lomar_det.data import check, configure_data, read_coco_summary
from lomar_det.data.checks.annotations import check_annotations
from lomar_det.data.checks.findings import ERROR, KINDS, WARNING, Findings
from lomar_det.errors import UserError

CONFIG = tool_args("custom/mask_rcnn_lomar_vit_tiny.py").config_file


@pytest.fixture
def drawn(tmp_path):
    """(content of the annotation file, a function that writes it) of a sound set."""
    data = draw_instances(tmp_path / "images")
    annotations = tmp_path / "annotations.json"

    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        annotations.write_text(text, "utf-8")
        return annotations, tmp_path / "images"

    return data, write


def run_check(paths, *options):
    """Exit code, and the findings of the report: kind -> (level, count, examples)."""
    out = paths[0].with_name("report.json")
    code = check.main([*map(str, paths), "--json", str(out), *options])
    found = json.loads(out.read_text())["findings"]
    return code, {f["kind"]: (f["level"], f["count"], f["examples"]) for f in found}


@functools.cache
def base_config():
    return load_config(CONFIG, ["dataloader.test.num_workers=0"])


def configured(paths):
    split = {"annotations": str(paths[0]), "images": str(paths[1])}
    cfg = with_settings(base_config(), {"data.train": split, "data.val": split})
    return configure_data(cfg).apply(cfg)


def set_up(paths):
    """All that happens to the data in training and evaluation, without a model."""
    cfg = configured(paths)
    mapper = instantiate(cfg.dataloader.train.mapper)
    samples = [mapper(entry) for entry in instantiate(cfg.dataloader.train.dataset)]
    assert all(math.isfinite(s["instances"].gt_boxes.tensor.sum()) for s in samples)
    evaluator = instantiate(cfg.dataloader.evaluator)
    evaluator.reset()
    for entry in instantiate(cfg.dataloader.test.dataset):
        evaluator.process([entry], [{"instances": as_detections(entry, cfg)}])
    return evaluator.evaluate()


def as_detections(entry, cfg):
    """The boxes of the ground truth as if a detector had found them, with masks of its own."""
    size = entry["height"], entry["width"]
    objects = entry["annotations"]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    found = Instances(size, pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    found.pred_classes = torch.tensor([a["category_id"] for a in objects])
    found.scores = torch.linspace(0.9, 0.5, len(objects))
    if cfg.model.roi_heads.mask_head is not None:
        found.pred_masks = torch.ones(len(objects), *size, dtype=torch.bool)
    return found


def first(**changes):
    """Changes annotation 1."""
    return lambda data: data["annotations"][0].update(changes)


def every(section, **changes):
    return lambda data: [entry.update(changes) for entry in data[section]]


def drop(section, key):
    return lambda data: data[section][0].pop(key)


def rle(counts, size=(64, 96)):
    return first(segmentation={"size": list(size), "counts": counts})


def scale_boxes(data):
    for a in data["annotations"]:
        a["bbox"] = [value / 100 for value in a["bbox"]]


def corners(data):
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x + 40, y + 40, x + w + 40, y + h + 40]


def repeat(section, **changes):
    return lambda data: data[section].append(data[section][0] | changes)


POLYGON = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0]
# name: (what is done to the set, the kind of finding)
ERRORS = {
    "no JSON": (lambda d: "{", "json"),
    "byte order mark": (lambda d: "\ufeff" + json.dumps(d), "json"),
    "a list": (lambda d: "[]", "structure"),
    "no categories": (lambda d: d["categories"].clear(), "structure"),
    "annotations are null": (lambda d: d.update(annotations=None), "structure"),
    "no bbox": (drop("annotations", "bbox"), "structure"),
    "width as text": (every("images", width="96"), "structure"),
    "file_name null": (every("images", file_name=None), "structure"),
    "category id as text": (every("categories", id="7"), "structure"),
    "image_id is a list": (first(image_id=[0]), "structure"),
    "image twice": (repeat("images"), "image-id"),
    "category twice": (repeat("categories"), "category-id"),
    "annotation twice": (repeat("annotations"), "annotation-id"),
    "unknown image": (first(image_id=99), "unknown-image"),
    "unknown category": (first(category_id=5), "unknown-category"),
    "missing image": (every("images", file_name="gone.png"), "missing-file"),
    "size swapped": (every("images", width=64, height=96), "size"),
    "iscrowd as text": (first(iscrowd="0"), "field"),
    "ignored": (first(ignore=1), "field"),
    "keypoints as text": (first(keypoints="abc"), "field"),
    "bbox of three": (first(bbox=[1, 2, 3]), "bbox"),
    "bbox with NaN": (first(bbox=[1, 2, 3, float("nan")]), "bbox"),
    "flat polygon": (first(segmentation=POLYGON), "segmentation"),
    "odd polygon": (first(segmentation=[POLYGON + [1]]), "segmentation"),
    "two points": (first(segmentation=[POLYGON[:4]]), "segmentation"),
    "polygon with NaN": (first(segmentation=[[*POLYGON, float("nan"), 1]]), "segmentation"),
    "mask as text": (first(segmentation="mask.png"), "segmentation"),
    "RLE in a list": (first(segmentation=[{"size": [64, 96]}]), "segmentation"),
    "RLE of another size": (rle([6144], (96, 64)), "segmentation"),
    "RLE too short": (rle([10, 5]), "segmentation"),
    "RLE with negatives": (rle([10, -5, 6139]), "segmentation"),
    "RLE without counts": (rle(None), "segmentation"),
    "RLE damaged": (rle("zzzzzzzzzzzzz"), "segmentation"),
    "RLE cut off": (rle(":T3b"), "segmentation"),
    "no area": (drop("annotations", "area"), "no-evaluation"),
    "no iscrowd": (drop("annotations", "iscrowd"), "no-evaluation"),
    "annotation id 0": (first(id=0), "no-evaluation"),
    "crowd without mask": (first(iscrowd=1, segmentation=[]), "no-evaluation"),
    "only crowds": (every("annotations", iscrowd=1), "no-objects"),
    "normalised boxes": (scale_boxes, "boxes-wrong"),
    "corners": (corners, "boxes-wrong"),
}
WARNINGS = {
    "box without width": (first(bbox=[5, 5, 0, 9]), "box-empty"),
    "box of negative width": (first(bbox=[50, 5, -20, 9]), "box-empty"),
    "box outside": (first(bbox=[90, 5, 20, 9]), "box-outside"),
    "mask elsewhere": (first(segmentation=[[70, 40, 90, 40, 90, 60, 70, 60]]), "mask-box"),
    "mask outside": (first(segmentation=[[200, 40, 210, 40, 210, 60]]), "mask-empty"),
    "mask without pixels": (rle([6144]), "mask-empty"),
    "mask that is a line": (first(segmentation=[[10, 10, 30, 10, 20, 10]]), "mask-empty"),
    "one mask missing": (drop("annotations", "segmentation"), "masks-partly"),
    "object twice": (repeat("annotations", id=1000), "same-object"),
    "image twice": (repeat("images", id=1000), "same-file"),
}
UNUSUAL = {
    "nothing": lambda d: None,
    "area 0": first(area=0),
    "name twice": every("categories", name="thing"),
    "unused category": repeat("categories", id=9, name="none"),
    "category 0": repeat("categories", id=0, name="zero"),
    "crowd as polygon": first(iscrowd=1),
    "image without objects": lambda d: d.update(
        annotations=[a for a in d["annotations"] if a["image_id"]]
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_reported_and_stop_training_with_one_clear_message(drawn, name, capsys):
    data, write = drawn
    change, kind = ERRORS[name]
    result = change(data)
    paths = write(result if isinstance(result, str) else data)
    code, found = run_check(paths)
    assert code == 1 and found[kind][0] == ERROR and found[kind][2]
    assert KINDS[kind].title in capsys.readouterr().out
    with pytest.raises(UserError) as error:
        configured(paths)
    message = str(error.value)
    assert message.startswith(f"{paths[0]}: ") and "\n" not in message
    assert found[kind][2][0] in message and KINDS[kind].meaning in message


@pytest.mark.parametrize("name", WARNINGS)
def test_warnings_are_reported_and_training_copes(drawn, name, lomar_log):
    data, write = drawn
    change, kind = WARNINGS[name]
    change(data)
    paths = write(data)
    code, found = run_check(paths)
    assert code == 0 and found[kind][0] == WARNING
    assert run_check(paths, "--strict")[0] == 1
    assert "bbox" in set_up(paths)
    assert KINDS[kind].title in lomar_log.text


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_only_unusual_is_no_finding(drawn, name):
    data, write = drawn
    UNUSUAL[name](data)
    paths = write(data)
    assert run_check(paths, "--strict") == (0, {})
    assert "bbox" in set_up(paths)


ODD = [None, "x", [], -1, 0, 1.5, 2**70, float("nan"), [[1]], {"a": 1}]


def test_whatever_is_in_a_field_training_refuses_clearly_or_copes(drawn, tmp_path):
    write, data = drawn[1], draw_instances(tmp_path / "images", num_images=2)
    refused = 0
    for section, more in (
        ("images", []),
        ("annotations", ["keypoints", "ignore"]),
        ("categories", []),
    ):
        for key in [*data[section][0], *more]:
            for value in ODD:
                broken = copy.deepcopy(data)
                broken[section][0][key] = value
                paths = write(broken)
                try:
                    set_up(paths)
                except UserError as error:
                    refused += 1
                    assert str(paths[0]) in str(error)
                except Exception as error:
                    raise AssertionError(f"{section} {key} = {value!r}: {error!r}") from error
    assert 100 < refused < 150, refused  # and the rest trains


def test_images_are_decoded_unless_quick_is_given(drawn):
    data, write = drawn
    data["images"][2]["file_name"] = "half.jpg"
    paths = write(data)
    image = paths[1] / "half.jpg"
    Image.open(paths[1] / "002.png").save(image)
    image.write_bytes(image.read_bytes()[:1500])
    code, found = run_check(paths)
    assert code == 1 and "half.jpg" in found["unreadable-file"][2][0]
    assert run_check(paths, "--quick")[0] == 0
    image.write_bytes(b"not an image")
    code, found = run_check(paths, "--quick")
    assert code == 1 and found["unreadable-file"][:2] == (ERROR, 1)
    with pytest.raises(UserError, match="half.jpg"):
        read_coco_summary(*paths)


def test_exif_orientation_counts_for_the_size(drawn):
    data, write = drawn
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (96, 64)).save(write(data)[1] / "000.png", exif=exif)
    assert run_check(write(data))[1]["size"][1] == 1
    data["images"][0].update(width=64, height=96)
    assert "size" not in run_check(write(data))[1]


def test_usage_errors_have_exit_code_2(drawn, tmp_path):
    paths = drawn[1](drawn[0])
    for wrong in ((tmp_path / "no.json", paths[1]), (paths[0], tmp_path / "nowhere"), (paths[0],)):
        with pytest.raises(SystemExit) as stop:
            check.main([str(path) for path in wrong])
        assert stop.value.code == 2


def test_train_only_does_not_ask_for_what_evaluation_needs(drawn):
    data, write = drawn
    del data["annotations"][0]["area"]
    assert run_check(write(data))[0] == 1 and run_check(write(data), "--train-only")[0] == 0


def test_many_examples_are_counted_not_listed(drawn, capsys):
    data, write = drawn
    for annotation in data["annotations"]:
        annotation["bbox"] = None
    _, found = run_check(write(data))
    assert found["bbox"][1] == len(data["annotations"]) and len(found["bbox"][2]) == 5
    assert f" {len(data['annotations']) - 5} " in capsys.readouterr().out


def test_a_set_without_objects_can_be_evaluated_on(drawn, lomar_log):
    data, write = drawn
    data["annotations"].clear()
    assert read_coco_summary(*write(data), for_evaluation=True).num_instances == 0
    assert KINDS["nothing-to-find"].title in lomar_log.text


def test_a_sentence_has_the_first_example_and_how_many_there_are():
    findings = Findings()
    findings.add("same-file", "a.png")
    one = findings.sentence("same-file")
    findings.add("same-file", "b.png")
    two = findings.sentence("same-file")
    assert "a.png" in one and "2" not in one
    assert "a.png" in two and "2" in two and "b.png" not in two


def test_summary_describes_the_set(drawn, capsys):
    data, write = drawn
    paths = write(data)
    run_check(paths)
    summary = json.loads(paths[0].with_name("report.json").read_text())["summary"]
    discs = sum(a["category_id"] == 3 for a in data["annotations"])
    total = len(data["annotations"])
    assert summary["class_names"] == ["disc", "square"]
    assert summary["class_counts"] == [discs, total - discs]
    assert sum(summary["objects_small_medium_large"]) == total == summary["num_polygon_masks"]
    assert sorted(summary["picture_sizes"]) == [[64, 96, 3], [96, 64, 3]]
    assert "disc" in capsys.readouterr().out


def test_a_hundred_thousand_annotations_take_seconds(drawn):
    data, _ = drawn
    template = data["annotations"][0]
    data["annotations"] = [
        template | {"id": i + 1, "bbox": [i % 50, i % 40, 9 + i / 1e5, 9]} for i in range(100_000)
    ]
    findings = Findings()
    start = time.process_time()  # of this process: other work on the machine does not count
    assert check_annotations(data, findings)
    assert time.process_time() - start < 15
    assert findings.counts["mask-box"] > 50_000


def test_real_sets_pass(shared_data):
    sets = {
        "coco-permissive/annotations_train": (80, 761, 9, True),
        "coco-permissive/annotations_val": (80, 510, 7, True),
        "nuclei-dsb2018/annotations_val": (1, 5861, 0, True),
        "nuclei-dsb2018/annotations_val_rle": (1, 5861, 0, True),
        "bccd-boxes/annotations_train": (3, 3941, 0, False),
        "bccd-boxes/annotations_val": (3, 945, 0, False),
    }
    for name, expected in sets.items():
        path = shared_data / f"{name}.json"
        data, findings = check.check_coco(path, path.parent / "images")
        s = check.summarize_coco(data, path, path.parent / "images")
        assert (len(s.class_names), s.num_instances, s.num_crowds, s.has_masks) == expected
        assert not list(findings)
