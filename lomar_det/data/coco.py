"""Reads, checks and registers a COCO-format data set."""

import json
import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import UserError
from .checks.annotations import check_annotations
from .checks.findings import ERROR, WARNING, Findings
from .checks.image_headers import check_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoSummary:
    """What training needs to know about an annotation file.

    Attributes:
        annotations, images: Paths of the annotation file and of the image folder.
        category_ids: In ascending order; they need not be contiguous.
        class_names: In the order of ``category_ids``.
        class_counts: Non-crowd objects of each class.
        num_images: All images.
        num_annotated_images: Images with at least one non-crowd object.
        num_instances: Non-crowd objects.
        num_crowds: Crowd regions.
        max_instances: The most non-crowd objects in one image.
        num_masks: Non-crowd objects with a segmentation.
        has_rle: At least one non-crowd segmentation is a run-length encoding.
    """

    annotations: Path
    images: Path
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    num_images: int
    num_annotated_images: int
    num_instances: int
    num_crowds: int
    max_instances: int
    num_masks: int
    has_rle: bool

    @property
    def has_masks(self) -> bool:
        """Whether there are non-crowd objects and all of them have a segmentation."""
        return self.num_masks == self.num_instances > 0

    def __str__(self) -> str:
        return (
            f"{self.annotations}: {self.num_images} images ({self.num_annotated_images} with "
            f"objects), {self.num_instances} objects of {len(self.class_names)} classes, "
            f"{'boxes and masks' if self.has_masks else 'boxes only'}"
        )


def summarize_coco(data: dict, annotations: Path, images: Path) -> CocoSummary:
    """The summary of a COCO file whose entries are complete."""
    categories = _sorted_categories(data)
    objects = [a for a in data["annotations"] if not a.get("iscrowd", 0)]
    per_image = Counter(a["image_id"] for a in objects)
    per_class = Counter(a["category_id"] for a in objects)
    segmentations = [a.get("segmentation") for a in objects]
    return CocoSummary(
        annotations=annotations,
        images=images,
        category_ids=tuple(category["id"] for category in categories),
        class_names=tuple(str(category["name"]) for category in categories),
        class_counts=tuple(per_class[category["id"]] for category in categories),
        num_images=len(data["images"]),
        num_annotated_images=len(per_image),
        num_instances=len(objects),
        num_crowds=len(data["annotations"]) - len(objects),
        max_instances=max(per_image.values(), default=0),
        num_masks=sum(map(bool, segmentations)),
        has_rle=any(isinstance(s, dict) for s in segmentations),
    )


def read_categories(annotations: str | Path) -> list[dict]:
    """The categories of an annotation file, ``id`` and ``name``, in the order of the classes.

    Raises:
        UserError: the file cannot be read, or lists no categories.
    """
    try:
        categories = _sorted_categories(
            json.loads(Path(annotations).expanduser().read_text("utf-8"))
        )
        return [{"id": category["id"], "name": str(category["name"])} for category in categories]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{annotations} has no categories in COCO format ({type(error).__name__}: {error})"
        ) from None


def _sorted_categories(data: dict) -> list[dict]:
    return sorted(data["categories"], key=lambda category: category["id"])


def merge_summaries(summaries: list[CocoSummary]) -> CocoSummary:
    """One summary of several files with the same categories; its paths are those of the first."""
    counted = ("num_images", "num_annotated_images", "num_instances", "num_crowds", "num_masks")
    return replace(
        summaries[0],
        class_counts=tuple(map(sum, zip(*(s.class_counts for s in summaries), strict=True))),
        max_instances=max(s.max_instances for s in summaries),
        has_rle=any(s.has_rle for s in summaries),
        **{name: sum(getattr(s, name) for s in summaries) for name in counted},
    )


def check_coco(
    annotations: Path,
    images: Path,
    for_training: bool = True,
    for_evaluation: bool = True,
    decode: bool = False,
    progress: bool = False,
) -> tuple[dict | None, Findings]:
    """All checks of a COCO-format set, for `lomar_det.data.check` and for training.

    Args:
        annotations: The JSON file.
        images: The folder of its images.
        for_training, for_evaluation: What the set is used for.
        decode: Read all images completely, not just their headers.
        progress: Show a progress bar.

    Returns:
        The file's content, None if its entries cannot be used, and what was found.
    """
    findings = Findings()
    data = read_annotations(annotations, findings, for_training, for_evaluation)
    if data is not None:
        check_files(data["images"], images, findings, decode, progress)
    return data, findings


def read_annotations(
    annotations: Path, findings: Findings, for_training: bool, for_evaluation: bool
) -> dict | None:
    """The content of a COCO file, None if its entries cannot be used; what is wrong is noted."""
    try:
        data = json.loads(annotations.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        findings.add("json", f"{annotations.name}: {error}")
        return None
    return data if check_annotations(data, findings, for_training, for_evaluation) else None


def read_coco_summary(
    annotations: str | Path, images: str | Path, for_evaluation: bool = False
) -> CocoSummary:
    """Reads a COCO annotation file, and checks it and its images; logs the warnings.

    Args:
        annotations: The JSON file.
        images: The folder of its images.
        for_evaluation: The set is for evaluation; otherwise it is for training.

    Raises:
        UserError: a file or folder is missing, or the checks find an error; the message names the
            first error and its remedy.
    """
    annotations, images = Path(annotations).expanduser(), Path(images).expanduser()
    if not annotations.is_file():
        raise UserError(
            f"the annotation file {annotations} does not exist; set data.*.annotations to it"
        )
    if not images.is_dir():
        raise UserError(f"the image folder {images} does not exist; set data.*.images to it")
    data, findings = check_coco(annotations, images, not for_evaluation, for_evaluation)
    errors = findings.of_level(ERROR)
    if errors:
        others = f". Further kinds of errors: {', '.join(errors[1:])}" if errors[1:] else ""
        raise UserError(
            f"{annotations}: {findings.sentence(errors[0])}{others}. For a full report: "
            f"python -m lomar_det.data.check {annotations} {images}"
        )
    for name in findings.of_level(WARNING):
        logger.warning("%s: %s", annotations, findings.sentence(name))
    return summarize_coco(data, annotations, images)


def register_coco(
    name: str, annotations: str | Path, images: str | Path, for_evaluation: bool = False
) -> CocoSummary:
    """Checks a COCO-format set and registers it in detectron2's catalogs under ``name``.

    A set that has this name already is replaced, so that notebooks can be re-run.

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
