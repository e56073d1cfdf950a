"""Divides a COCO-format file into two by its images, such as for training and validation.

python -m lomar_det.data.split all.json train.json val.json --share 0.8 [--seed 0]

The images stay where they are. Both parts keep the categories, all ids and whatever else the file
holds; the same seed gives the same parts.
"""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

from ..errors import UserError, user_message
from .checks.findings import ERROR, Findings
from .coco import read_annotations


def split_coco(data: dict, share: float, seed: int = 0) -> tuple[dict, dict]:
    """Draws ``share`` of the images, at least one and not all; the others are the second part.

    Args:
        data: A COCO file's content.
        share: In (0, 1).
        seed: Of the draw.

    Returns:
        Both parts, images and annotations in the order of the file.
    """
    ids = [image["id"] for image in data["images"]]
    number = min(max(round(share * len(ids)), 1), len(ids) - 1)
    drawn = set(random.Random(seed).sample(ids, number))
    parts = []
    for first in (True, False):
        part = dict(data)
        part["images"] = [i for i in data["images"] if (i["id"] in drawn) == first]
        part["annotations"] = [a for a in data["annotations"] if (a["image_id"] in drawn) == first]
        parts.append(part)
    return parts[0], parts[1]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    args = parse_arguments(arguments)
    try:
        data = read_coco(args.annotations)
        parts = zip((args.first, args.second), split_coco(data, args.share, args.seed), strict=True)
        for path, part in parts:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(part) + "\n", "utf-8")
            print(describe(path, part))
    except (UserError, OSError) as error:
        print(f"error: {user_message(error)}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lomar_det.data.split",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("annotations", type=Path, help="COCO-format JSON")
    parser.add_argument("first", type=Path, help="writes the drawn images there")
    parser.add_argument("second", type=Path, help="writes the others there")
    parser.add_argument("--share", type=float, default=0.8, help="of the first, in (0, 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    args = parser.parse_args(arguments)
    if not 0 < args.share < 1:
        parser.error(f"--share must be between 0 and 1, got {args.share}")
    paths = [args.annotations, args.first, args.second]
    if len({path.expanduser().resolve() for path in paths}) < len(paths):
        parser.error("the three files must be different")
    args.annotations, args.first, args.second = (path.expanduser() for path in paths)
    return args


def read_coco(path: Path) -> dict:
    """Reads and checks the entries of a COCO file of at least two images.

    Raises:
        UserError: the file cannot be read, its entries cannot be used, or there is nothing to
            divide.
    """
    findings = Findings()
    data = read_annotations(path, findings, for_training=False, for_evaluation=False)
    if names := findings.of_level(ERROR):
        raise UserError(f"{path}: {findings.sentence(names[0])}")
    if len(data["images"]) < 2:
        raise UserError(f"{path} has {len(data['images'])} images: there is nothing to divide")
    return data


def describe(path: Path, part: dict) -> str:
    counts = Counter(annotation["category_id"] for annotation in part["annotations"])
    classes = ", ".join(f"{c['name']} {counts[c['id']]}" for c in part["categories"])
    return f"{path}: {len(part['images'])} images, {counts.total()} objects ({classes})"


if __name__ == "__main__":
    sys.exit(main())
