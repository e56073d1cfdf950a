"""Reading and registering a COCO-format data set; everything is checked before training starts."""

import json
import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import UserError
from ..images import image_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoSummary:
    """What training needs to know of an annotation file.

    Attributes:
        annotations, images: Where the set lies.
        class_names: In the order of the category ids, which need not be contiguous.
        num_images: All images; ``num_annotated_images`` of them have at least one non-crowd object.
        num_instances: Non-crowd objects.
        max_instances: The most non-crowd objects in one image.
        num_masks: Non-crowd objects with a segmentation; ``has_masks``: all of them have one.
        has_rle: At least one non-crowd segmentation is a run-length encoding.
    """

    annotations: Path
    images: Path
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    num_images: int
    num_annotated_images: int
    num_instances: int
    max_instances: int
    num_masks: int
    has_rle: bool

    @property
    def has_masks(self) -> bool:
        return self.num_masks == self.num_instances > 0

    def __str__(self) -> str:
        return (
            f"{self.annotations}: {self.num_images} images ({self.num_annotated_images} with "
            f"objects), {self.num_instances} objects of {len(self.class_names)} classes, "
            f"{'boxes and masks' if self.has_masks else 'boxes only'}"
        )


def read_coco_summary(
    annotations: str | Path, images: str | Path, for_evaluation: bool = False
) -> CocoSummary:
    """Reads a COCO annotation file and checks that the pictures it names are there.

    With ``for_evaluation``, also that it has what pycocotools needs to compute AP.

    Raises:
        UserError: a file or folder is missing, the JSON is not in COCO format, or it names
            pictures that do not exist; the message names them and the remedy.
    """
    annotations, images = Path(annotations).expanduser(), Path(images).expanduser()
    data = _read_json(annotations)
    if not images.is_dir():
        raise UserError(f"the image folder {images} does not exist; set data.*.images to it")
    _check_images(data, annotations, images)
    categories = _sorted_categories(data)
    objects = [a for a in data["annotations"] if not a.get("iscrowd", 0)]
    _check_references(data, objects, annotations)
    _check_boxes(data, objects, annotations)
    if for_evaluation:
        _check_evaluable(data, annotations)
    per_image = Counter(a["image_id"] for a in objects)
    segmentations = [a.get("segmentation") for a in objects]
    return CocoSummary(
        annotations=annotations,
        images=images,
        category_ids=tuple(category["id"] for category in categories),
        class_names=tuple(str(category["name"]) for category in categories),
        num_images=len(data["images"]),
        num_annotated_images=len(per_image),
        num_instances=len(objects),
        max_instances=max(per_image.values(), default=0),
        num_masks=sum(map(bool, segmentations)),
        has_rle=any(isinstance(s, dict) for s in segmentations),
    )


def read_categories(annotations: str | Path) -> list[dict]:
    """The categories of an annotation file, ``id`` and ``name``, in the order of the classes."""
    return _sorted_categories(_read_json(Path(annotations).expanduser()))


def _sorted_categories(data: dict) -> list[dict]:
    return sorted(data["categories"], key=lambda category: category["id"])


def _read_json(path: Path) -> dict:
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            f"the annotation file {path} does not exist; set data.*.annotations to it"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"the annotation file {path} is not readable JSON: {error}") from None
    required = {
        "images": ("id", "file_name", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for section, keys in required.items():
        if not isinstance(data, dict) or not isinstance(data.get(section), list):
            raise UserError(f"{path} is not in COCO instance format: it has no list {section!r}")
        for number, entry in enumerate(data[section]):
            missing = [k for k in keys if not isinstance(entry, dict) or k not in entry]
            if missing:
                raise UserError(
                    f"{path}: entry {number} of {section!r} has no {missing[0]!r}; COCO instance "
                    f"format needs {', '.join(keys)} there"
                )
    if not data["categories"] or not data["images"]:
        raise UserError(f"{path} lists no {'images' if data['categories'] else 'categories'}")
    return data


def _check_images(data: dict, annotations: Path, images: Path) -> None:
    missing = [
        i["file_name"] for i in data["images"] if not (images / str(i["file_name"])).is_file()
    ]
    if missing:
        raise UserError(
            f"{annotations} names {len(missing)} of {len(data['images'])} pictures that are not in "
            f"{images}, first {missing[0]!r}; put them there, or set data.*.images to their folder"
        )
    for image in data["images"]:
        size = image_size(images / image["file_name"])
        if size != (image["width"], image["height"]):
            raise UserError(
                f"{annotations} says that {image['file_name']} is {image['width']} x "
                f"{image['height']} pixels, the file is {size[0]} x {size[1]}; correct the entry"
            )


def _check_references(data: dict, objects: list[dict], annotations: Path) -> None:
    image_ids = {image["id"] for image in data["images"]}
    category_ids = {category["id"] for category in data["categories"]}
    ids = Counter(a["id"] for a in data["annotations"])
    problems = {
        "an unknown image_id": [a for a in objects if a["image_id"] not in image_ids],
        "an unknown category_id": [a for a in objects if a["category_id"] not in category_ids],
        "an id that another one has": [a for a in objects if ids[a["id"]] > 1],
    }
    if len(image_ids) < len(data["images"]):
        raise UserError(f"{annotations}: several images have the same id; give each its own")
    if len(category_ids) < len(data["categories"]):
        raise UserError(f"{annotations}: several categories have the same id; give each its own")
    for what, bad in problems.items():
        if bad:
            raise UserError(
                f"{annotations}: {len(bad)} annotations have {what}, first the one with id "
                f"{bad[0]['id']}; correct or remove them"
            )


def _check_boxes(data: dict, objects: list[dict], annotations: Path) -> None:
    """Boxes are [x, y, width, height] in pixels; what is not would train in vain, and silently."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    wrong = []
    for entry in objects:
        box = entry["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
            raise UserError(
                f"{annotations}: the annotation with id {entry['id']} has the bbox {box}; COCO "
                "boxes are four numbers, [x, y, width, height] in pixels"
            )
        width, height = sizes[entry["image_id"]]
        x, y, w, h = box
        if min(w, h) <= 0 or x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
            wrong.append(entry["id"])
    if not wrong:
        if objects and all(max(entry["bbox"]) <= 1 for entry in objects):
            raise UserError(f"{annotations}: boxes are in pixels, these look normalised to 0..1")
        return
    message = (
        f"{annotations}: {len(wrong)} of {len(objects)} boxes are empty or reach out of their "
        f"picture, first that of the annotation with id {wrong[0]}"
    )
    if 2 * len(wrong) > len(objects):
        raise UserError(f"{message}; COCO boxes are [x, y, width, height], not corners")
    logger.warning(message)


def _is_finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_evaluable(data: dict, annotations: Path) -> None:
    """pycocotools would fail on these, or count wrong, but only after the training."""
    for number, annotation in enumerate(data["annotations"]):
        missing = [key for key in ("area", "iscrowd") if key not in annotation]
        if missing:
            raise UserError(
                f"{annotations}: entry {number} of 'annotations' has no {missing[0]!r}, which COCO "
                "evaluation needs; add it to all (iscrowd: 0; area: of the mask or the box)"
            )
        if isinstance(annotation["id"], int) and annotation["id"] < 1:
            raise UserError(
                f"{annotations}: an annotation has the id {annotation['id']}; COCO evaluation "
                "needs ids of at least 1, renumber them"
            )


def register_coco(
    name: str, annotations: str | Path, images: str | Path, for_evaluation: bool = False
) -> CocoSummary:
    """Checks a COCO-format set and registers it in detectron2's catalogs under ``name``.

    Registering the same name again replaces it, so that notebooks can be re-run.

    Raises:
        UserError: see `read_coco_summary`.
    """
    summary = read_coco_summary(annotations, images, for_evaluation)
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, str(summary.annotations), str(summary.images))
    MetadataCatalog.get(name).thing_classes = list(summary.class_names)
    logger.info("%s = %s", name, summary)
    return summary
