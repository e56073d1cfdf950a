"""What can be wrong with a COCO-format set, and what each thing means."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        level: ``error``: training or evaluation would stop, or be wrong throughout; ``warning``:
            they run, but some objects are lost or doubtful.
        title: What was found, as a plural.
        meaning: What follows from it and what to do.
    """

    level: str
    title: str
    meaning: str


# In the order in which they are printed; training names the first error.
KINDS = {
    "json": Kind(ERROR, "files that are not readable JSON", "export the set again"),
    "structure": Kind(
        ERROR,
        "entries that are not in COCO instance format",
        "images need id, file_name, width and height; annotations id, image_id, category_id and "
        "bbox; categories id and name. Everything else is checked once these are mended",
    ),
    "image-id": Kind(ERROR, "images that have the same id", "give each its own"),
    "category-id": Kind(ERROR, "categories that have the same id", "give each its own"),
    "annotation-id": Kind(
        ERROR, "annotations with an id that another one has", "correct or remove them"
    ),
    "unknown-image": Kind(
        ERROR, "annotations with an unknown image_id", "correct or remove them, or add the images"
    ),
    "unknown-category": Kind(
        ERROR,
        "annotations with an unknown category_id",
        "correct or remove them, or add the categories",
    ),
    "missing-file": Kind(
        ERROR,
        "images that are not in the image folder",
        "put them there, or set data.*.images to their folder",
    ),
    "unreadable-file": Kind(ERROR, "images that cannot be read", "training would stop at them"),
    "size": Kind(
        ERROR,
        "images whose size is not that of their entry",
        "boxes and masks would be in the wrong place: correct the entries or the files; images "
        "are turned upright as their EXIF orientation says",
    ),
    "field": Kind(
        ERROR,
        "annotations with a field that detectron2 cannot read",
        "iscrowd must be 0 or 1, keypoints a list of numbers; instead of ignore, use iscrowd",
    ),
    "bbox": Kind(
        ERROR,
        "annotations whose bbox is not four numbers",
        "COCO boxes are [x, y, width, height] in pixels",
    ),
    "segmentation": Kind(
        ERROR,
        "annotations whose segmentation is no mask",
        "polygons are lists [[x1, y1, x2, y2, x3, y3, ...], ...] of at least three points each, "
        "run-length masks {'size': [height, width], 'counts': ...}; without one, leave it out",
    ),
    "no-evaluation": Kind(
        ERROR,
        "annotations that lack what COCO evaluation needs",
        "give all of them an id that is a whole number of at least 1, iscrowd (0), an area (of the "
        "mask or the box) and, where all objects have masks, crowd regions one, too",
    ),
    "no-objects": Kind(ERROR, "sets that have no objects to learn from", "annotate some"),
    "boxes-wrong": Kind(
        ERROR,
        "sets whose boxes are normalised to 0..1, or mostly empty or out of their image",
        "COCO boxes are [x, y, width, height] in pixels: neither corners nor shares of the image",
    ),
    "box-empty": Kind(
        WARNING,
        "boxes without width or height",
        "they are not trained on, and count as missed in the evaluation",
    ),
    "box-outside": Kind(
        WARNING,
        "boxes that reach out of their image",
        "training clips them to it, evaluation compares them as they are",
    ),
    "mask-empty": Kind(
        WARNING,
        "masks without a pixel",
        "these objects are not trained on, and count as missed in the evaluation",
    ),
    "mask-box": Kind(
        WARNING,
        "masks that are not where their boxes are",
        "training takes the box from the mask, evaluation takes the one that is given",
    ),
    "masks-partly": Kind(
        WARNING,
        "objects without a mask in a set that has masks",
        "the mask head would be off: give all objects one, or remove these",
    ),
    "same-object": Kind(
        WARNING,
        "objects annotated twice (same image, category and box)",
        "one of them counts as missed in the evaluation",
    ),
    "same-file": Kind(
        WARNING,
        "images listed twice",
        "their objects are split over two entries: each lacks the other's",
    ),
    "nothing-to-find": Kind(WARNING, "sets without objects", "AP cannot be computed"),
}


class Findings:
    """Counts what was found, by kind, and keeps the first examples of each."""

    def __init__(self, max_examples: int = 5):
        self.max_examples = max_examples
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, example: str) -> None:
        assert kind in KINDS, kind
        self.counts[kind] += 1
        if len(self.examples[kind]) < self.max_examples:
            self.examples[kind].append(example)

    def __iter__(self) -> Iterator[tuple[str, Kind]]:
        """The kinds found, errors first."""
        return ((name, kind) for name, kind in KINDS.items() if self.counts[name])

    def of_level(self, level: str) -> list[str]:
        return [name for name, kind in self if kind.level == level]

    def sentence(self, name: str) -> str:
        """One finding for a log line or an error: what, how many, the first of them, the remedy."""
        kind = KINDS[name]
        count, example = self.counts[name], self.examples[name][0]
        where = f": {example}" if count == 1 else f" ({count}), first {example}"
        return f"{kind.title}{where}; {kind.meaning}"

    def to_json(self) -> list[dict]:
        return [
            {"kind": name, "count": self.counts[name], "examples": self.examples[name]} | vars(kind)
            for name, kind in self
        ]
