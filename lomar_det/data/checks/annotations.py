"""Checks of a COCO annotation file by itself, before any image is opened."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from .findings import ERROR, Findings
from .segmentations import mask_box

_REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def check_annotations(
    data: Any, findings: Findings, for_training: bool = True, for_evaluation: bool = True
) -> bool:
    """Adds what is wrong with the content of a COCO annotation file to ``findings``.

    Args:
        data: What is in the file.
        findings: Where to note it.
        for_training: There must be objects to learn from.
        for_evaluation: There must be what pycocotools needs to compute AP.

    Returns:
        Whether images, annotations and categories are lists of complete entries.
    """
    _check_structure(data, findings)
    if findings.of_level(ERROR):
        return False
    _check_ids(data, findings)
    if not findings.of_level(ERROR):
        _check_objects(data, findings, for_evaluation)
        _check_content(data, findings, for_training, for_evaluation)
    return True


def _check_structure(data: Any, findings: Findings) -> None:
    for section, keys in _REQUIRED.items():
        entries = data.get(section) if isinstance(data, dict) else None
        if not isinstance(entries, list):
            findings.add("structure", f"there is no list {section!r}")
            continue
        if not entries and section != "annotations":
            findings.add("structure", f"there are no {section}")
        for number, entry in enumerate(entries):
            for problem in _entry_problems(section, keys, entry):
                findings.add("structure", f"entry {number} of {section!r} {problem}")


def _entry_problems(section: str, keys: tuple[str, ...], entry: Any) -> Iterable[str]:
    if not isinstance(entry, dict):
        yield f"is no object with {', '.join(keys)}"
        return
    missing = [key for key in keys if key not in entry]
    if missing:
        yield f"has no {missing[0]!r}"
        return
    if section == "images":
        if not _is_whole(entry["id"]) and not isinstance(entry["id"], str):
            yield f"has the id {_short(entry['id'])}: it must be a whole number"
        if not isinstance(entry["file_name"], str) or not entry["file_name"]:
            yield f"has the file_name {_short(entry['file_name'])}: it must be a file's name"
        for key in ("width", "height"):
            if not _is_whole(entry[key]) or entry[key] < 1:
                yield f"has the {key} {_short(entry[key])}: it must be a whole number above 0"
    elif section == "categories":
        if not _is_whole(entry["id"]):
            yield f"has the id {_short(entry['id'])}: it must be a whole number"
        if not isinstance(entry["name"], str):
            yield f"has the name {_short(entry['name'])}: it must be a text"
    else:
        for key in ("id", "image_id", "category_id"):
            if not _is_whole(entry[key]) and not isinstance(entry[key], str):
                yield f"has the {key} {_short(entry[key])}: it must be a whole number"


def _check_ids(data: dict, findings: Findings) -> None:
    for section, kind in (("images", "image-id"), ("categories", "category-id")):
        for value, count in Counter(entry["id"] for entry in data[section]).items():
            if count > 1:
                findings.add(kind, f"{count} with the id {_short(value)}")
    if len({type(image["id"]) for image in data["images"]}) > 1:
        findings.add("structure", "some images have a number as id, others a text")
    seen = set()
    image_ids = {image["id"] for image in data["images"]}
    category_ids = {category["id"] for category in data["categories"]}
    for entry in data["annotations"]:
        name = f"annotation {_short(entry['id'])}"
        if entry["id"] in seen:
            findings.add("annotation-id", name)
        seen.add(entry["id"])
        if entry["image_id"] not in image_ids:
            findings.add("unknown-image", f"{name}: image_id {_short(entry['image_id'])}")
        if entry["category_id"] not in category_ids:
            category = _short(entry["category_id"])
            findings.add("unknown-category", f"{name}: category_id {category}")


def _check_objects(data: dict, findings: Findings, for_evaluation: bool) -> None:
    """Every annotation by itself. Boxes of crowds are not compared: nothing is trained on them."""
    images = {image["id"]: image for image in data["images"]}
    names, boxes = [], []  # of objects with a sound box: see `_check_boxes`
    seen = set()
    for entry in data["annotations"]:
        image = images[entry["image_id"]]
        name = f"annotation {_short(entry['id'])} ({image['file_name']})"
        problems = list(_object_problems(entry, for_evaluation))
        segmentation, around = entry.get("segmentation"), _NO_MASK
        if segmentation is not None and segmentation not in ([], {}):
            try:
                around = mask_box(segmentation, image["width"], image["height"])
            except ValueError as error:
                problems.append(("segmentation", str(error)))
        box = entry["bbox"]
        if not _is_numbers(box) or len(box) != 4:
            problems.append(("bbox", f"bbox {_short(box)}"))
        elif not entry.get("iscrowd", 0):
            names.append(name)
            boxes.append((*box, image["width"], image["height"], *around))
            key = (entry["image_id"], entry["category_id"], *box)
            if key in seen:
                problems.append(("same-object", f"bbox {_short(box)}"))
            seen.add(key)
        for kind, what in problems:
            findings.add(kind, f"{name}: {what}")
    if boxes:
        _check_boxes(names, np.array(boxes, dtype=float), findings)


_NO_MASK = (math.nan,) * 4


def _object_problems(entry: dict, for_evaluation: bool) -> Iterable[tuple[str, str]]:
    """(kind, what) of everything but box and mask."""
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1) or isinstance(crowd, float):
        yield "field", f"iscrowd {_short(crowd)}"
    if entry.get("ignore", 0) != 0:
        yield "field", f"ignore {_short(entry['ignore'])}"
    if not _is_numbers(entry.get("keypoints") or []):
        yield "field", f"keypoints {_short(entry['keypoints'])}"
    if for_evaluation:
        for problem in _evaluation_problems(entry):
            yield "no-evaluation", problem


def _evaluation_problems(entry: dict) -> Iterable[str]:
    if not _is_whole(entry["id"]) or entry["id"] < 1:
        yield f"id {_short(entry['id'])}"
    if "iscrowd" not in entry:
        yield "no 'iscrowd'"
    area = entry.get("area")
    if not _is_numbers([area]) or area < 0:
        yield f"area {_short(area)}" if "area" in entry else "no 'area'"


def _check_boxes(names: list[str], boxes: np.ndarray, findings: Findings) -> None:
    """Compares boxes with their images and with their masks.

    Mask and box should agree to three pixels, or a tenth of the box; COCO's own do.

    Args:
        names: Of each object, for the findings.
        boxes: (N, 10), of each object the box [x, y, w, h], the image's [width, height] and the box
            around the mask [x0, y0, x1, y1], NaN if there is no mask.
        findings: Where to note it.
    """
    x, y, w, h, width, height = boxes[:, :6].T
    empty = (w <= 0) | (h <= 0)
    outside = ~empty & ((x < -1) | (y < -1) | (x + w > width + 1) | (y + h > height + 1))
    limit = np.stack([width, height, width, height], axis=1)
    around = boxes[:, 6:].clip(0, limit)
    mask_empty = (around[:, 2:] <= around[:, :2]).any(1)  # NaN compares as False
    apart = np.abs(np.stack([x, y, x + w, y + h], axis=1).clip(0, limit) - around).max(1)
    elsewhere = ~empty & ~mask_empty & (apart > np.maximum(3, 0.1 * np.maximum(w, h)))

    def describe(index: int) -> str:
        x, y, w, h, width, height = boxes[index, :6]
        return f"{names[index]}: bbox [{x:g}, {y:g}, {w:g}, {h:g}] in {width:g} x {height:g}"

    wrong = empty | outside
    if (boxes[:, :4] <= 1).all():
        findings.add("boxes-wrong", f"all are normalised, among them {describe(0)}")
    elif 2 * wrong.sum() > len(boxes):
        some = f"{wrong.sum()} of {len(boxes)}, among them"
        findings.add("boxes-wrong", f"{some} {describe(int(wrong.argmax()))}")
    for kind, where in (
        ("box-empty", empty),
        ("box-outside", outside),
        ("mask-empty", mask_empty),
        ("mask-box", elsewhere),
    ):
        for index in np.flatnonzero(where):
            findings.add(kind, describe(index))


def _check_content(
    data: dict, findings: Findings, for_training: bool, for_evaluation: bool
) -> None:
    """The set as a whole."""
    objects = [entry for entry in data["annotations"] if not entry.get("iscrowd", 0)]
    if not objects:
        findings.add("no-objects" if for_training else "nothing-to-find", "this one")
    without = [entry for entry in objects if not entry.get("segmentation")]
    if len(without) < len(objects):
        for entry in without:
            findings.add("masks-partly", f"annotation {_short(entry['id'])}")
    if objects and not without and for_evaluation:
        for entry in data["annotations"]:
            if not entry.get("segmentation"):
                name = f"annotation {_short(entry['id'])}"
                findings.add("no-evaluation", f"{name}: crowd region without a segmentation")
    for name, count in Counter(image["file_name"] for image in data["images"]).items():
        if count > 1:
            findings.add("same-file", f"{name}: {count} times")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
