"""Fetches three annotated aerial images of trees and cuts them into a small detection data set.

The images come from the wheel of the Python package ``deepforest`` (MIT licence), which is fetched
with pip and read as an archive; nothing of it is installed. What is written::

    OUTPUT/train/*.jpg                tiles of the training image
    OUTPUT/val/*.jpg                  tiles of the validation image
    OUTPUT/annotations_train.json     COCO format, boxes only
    OUTPUT/annotations_val.json
    OUTPUT/unlabelled/*.jpg           tiles for pretraining; none of the validation image
    OUTPUT/summary.json               settings and counts; written last
    OUTPUT/LICENSE-deepforest.txt     licence of the images' source
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tiling import write_coco, write_tiles  # in this folder

from lomar_det.data.tiles import Box, tile_boxes

WHEEL_REQUIREMENT = "deepforest==2.1.0"
WHEEL_NAME = "deepforest-2.1.0-py3-none-any.whl"
WHEEL_SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
WHEEL_LICENCE = "deepforest-2.1.0.dist-info/licenses/LICENSE"
# Raised whenever the tiles of unchanged settings would come out differently.
LAYOUT_VERSION = 1


@dataclass(frozen=True)
class Source:
    """One image of the wheel, with what it must contain."""

    name: str
    source: str
    size: tuple[int, int]  # (width, height)
    num_boxes: int


TRAIN = Source("yell_528000", "2019_YELL_2_528000_4978000_image_crop2", (2299, 2472), 574)
VAL = Source("yell_541000", "2019_YELL_2_541000_4977000_image_crop", (1249, 1035), 279)
EXTRA = Source("osbs_029", "OSBS_029", (400, 400), 61)


def parse_voc(text: str | bytes) -> tuple[tuple[int, int], list[Box]]:
    """Reads a Pascal VOC annotation: image size (width, height) and boxes.

    Only for files of known content (the wheel's hash is checked): the standard library's parser
    does not defend itself against hostile XML.
    """
    root = ElementTree.fromstring(text)

    def number(element: ElementTree.Element, tag: str) -> int:
        value = element.findtext(tag)
        if value is None:
            raise ValueError(f"annotation lacks {tag}")
        return round(float(value))

    size = (number(root, "size/width"), number(root, "size/height"))
    corners = ("bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
    boxes: list[Box] = []
    for item in root.iter("object"):
        x0, y0, x1, y1 = (number(item, corner) for corner in corners)
        boxes.append((x0, y0, x1, y1))
    return size, boxes


def load_image(wheel: zipfile.ZipFile, source: Source) -> tuple[Image.Image, list[Box]]:
    """Reads an image and its boxes; complains when they are not what is expected."""
    with wheel.open(f"deepforest/data/{source.source}.png") as file:
        image = Image.open(file).convert("RGB")
    size, boxes = parse_voc(wheel.read(f"deepforest/data/{source.source}.xml"))
    found = (image.size, size, len(boxes))
    if found != (source.size, source.size, source.num_boxes):
        raise ValueError(
            f"{source.source}: expected an image of {source.size} pixels with "
            f"{source.num_boxes} boxes, found {image.size} (annotation: {size}) with {len(boxes)}"
        )
    return image, boxes


def check_wheel(path: Path) -> Path:
    """Checks the wheel's SHA-256."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ValueError(
            f"{path} is not the expected {WHEEL_NAME}: its SHA-256 is {digest}, not "
            f"{WHEEL_SHA256}. Delete it and fetch the file again"
        )
    return path


def fetch_wheel(folder: Path) -> Path:
    """Downloads the wheel with pip, so that the user's pip settings (index, proxy) hold."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL_REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    # The package is only read, so it does not matter which Python versions it runs on.
    command += ["--only-binary=:all:", "--ignore-requires-python", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "-r", str(requirements)]
    print(f"fetching {WHEEL_NAME} (20 MB) with pip", flush=True)
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        # pip's own last lines name the cause: no network, no such file, another hash.
        cause = "\n".join(result.stderr.strip().splitlines()[-8:])
        raise RuntimeError(
            f"could not fetch {WHEEL_NAME} (SHA-256 {WHEEL_SHA256}). pip says:\n{cause}\n"
            "Check the network and pip's settings (`python -m pip config list`) and try again, or "
            f"fetch {WHEEL_NAME} elsewhere and hand it over with --wheel FILE"
        )
    return check_wheel(folder / WHEEL_NAME)


def read_summary(output: Path) -> dict[str, Any] | None:
    """Returns the summary of a data set made earlier; None where there is none."""
    try:
        summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and "settings" in summary else None


def is_complete(output: Path, summary: dict[str, Any]) -> bool:
    """Whether all files that the summary speaks of are there."""
    tiles = all(
        len(list((output / part).glob("*.jpg"))) == summary["counts"][part]["images"]
        for part in ("train", "val", "unlabelled")
    )
    return tiles and all(
        (output / f"annotations_{split}.json").is_file() for split in ("train", "val")
    )


def describe(output: Path, summary: dict[str, Any], reused: bool) -> dict[str, Any]:
    """Puts paths and counts together as `prepare` returns them."""
    result: dict[str, Any] = {"root": output, "reused": reused}
    for part, counts in summary["counts"].items():
        result[part] = {"image_root": output / part, **counts}
    for split in ("train", "val"):
        result[split]["annotations"] = output / f"annotations_{split}.json"
    return result


def build(output: Path, wheel_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes the whole data set into the new folder ``output``; returns its summary."""
    counts: dict[str, dict[str, int]] = {}
    unlabelled = output / "unlabelled"
    num_unlabelled = 0
    with zipfile.ZipFile(wheel_path) as wheel:
        output.mkdir(parents=True)
        (output / "LICENSE-deepforest.txt").write_bytes(wheel.read(WHEEL_LICENCE))
        for split, source in (("train", TRAIN), ("val", VAL)):
            image, boxes = load_image(wheel, source)
            tile_size, overlap = settings[split]
            tiles = write_tiles(image, source.name, output / split, tile_size, overlap)
            annotations = output / f"annotations_{split}.json"
            counts[split] = write_coco(
                tiles,
                boxes,
                settings["min_area"],
                annotations,
                category="tree",
                description=f"Tree crowns, images of {WHEEL_REQUIREMENT} (MIT)",
            )
        for source in (TRAIN, EXTRA):
            image, _ = load_image(wheel, source)
            num_unlabelled += len(
                write_tiles(image, source.name, unlabelled, *settings["unlabelled"])
            )
    counts["unlabelled"] = {"images": num_unlabelled}
    summary = {"settings": settings, "counts": counts}
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def prepare(
    output: Path,
    tile_size: int = 400,
    overlap: int = 100,
    *,
    val_tile_size: int | None = None,
    val_overlap: int = 0,
    unlabelled_tile_size: int = 512,
    unlabelled_overlap: int = 128,
    min_area: float = 0.4,
    wheel: Path | None = None,
) -> dict[str, Any]:
    """Makes the data set, or reuses a complete one that was made with the same settings.

    Args:
        output: folder to write; a data set of other settings in there is replaced.
        tile_size: side of the training tiles in pixels; 0 for the whole image.
        overlap: pixels that neighbouring training tiles share at least.
        val_tile_size: the same for validation; None for that of training, 0 for the whole image.
        val_overlap: the same for validation. With 0 no tree is counted twice, but for those that a
            border cuts near their middle.
        unlabelled_tile_size: the same for the pretraining tiles.
        unlabelled_overlap: the same for the pretraining tiles.
        min_area: least share of a box that must lie in a tile for the box to be kept there.
        wheel: an already downloaded wheel; by default it is fetched with pip.

    Returns:
        ``root``, ``reused``, and for ``train``, ``val`` and ``unlabelled`` a dictionary with
        ``image_root`` and ``images`` (their number); for the first two also ``annotations`` (path),
        ``boxes`` and ``boxes_in_no_tile``.

    Raises:
        ValueError: settings, output folder or wheel are not usable.
        RuntimeError: the download failed.
    """
    output = Path(output)
    if not 0 < min_area <= 1:
        raise ValueError(f"min_area must be above 0 and at most 1, not {min_area}")
    settings: dict[str, Any] = {
        "layout": LAYOUT_VERSION,
        "train": [tile_size, overlap],
        "val": [tile_size if val_tile_size is None else val_tile_size, val_overlap],
        "unlabelled": [unlabelled_tile_size, unlabelled_overlap],
        "min_area": min_area,
    }
    for part, source in (("train", TRAIN), ("val", VAL), ("unlabelled", TRAIN)):
        list(tile_boxes(source.size, *settings[part]))  # unusable settings end here, not later

    previous = read_summary(output)
    if previous is not None and previous["settings"] == settings and is_complete(output, previous):
        return describe(output, previous, reused=True)
    if previous is None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"{output} exists and was not made by this script. Choose another output folder, or "
            "empty this one"
        )

    output.parent.mkdir(parents=True, exist_ok=True)
    # Built beside the output, so that the last step is a mere rename, of the old data set's too.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        wheel_path = fetch_wheel(Path(scratch)) if wheel is None else check_wheel(Path(wheel))
        built = Path(scratch) / "data"
        summary = build(built, wheel_path, settings)
        if output.exists():
            output.rename(Path(scratch) / "replaced")
        built.rename(output)
    return describe(output, summary, reused=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Prepare the tree crown data set.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--tile-size", type=int, default=400, help="training tiles, in pixels")
    parser.add_argument("--overlap", type=int, default=100, help="shared by training tiles")
    parser.add_argument("--val-tile-size", type=int, help="0: whole image; default: as training")
    parser.add_argument("--val-overlap", type=int, default=0)
    parser.add_argument("--unlabelled-tile-size", type=int, default=512)
    parser.add_argument("--unlabelled-overlap", type=int, default=128)
    parser.add_argument("--min-area", type=float, default=0.4, help="least share of a kept box")
    parser.add_argument("--wheel", type=Path, help=f"a {WHEEL_NAME} downloaded by hand")
    try:
        result = prepare(**vars(parser.parse_args(argv)))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{'reused' if result['reused'] else 'wrote'} {result['root']}")
    for split in ("train", "val"):
        part = result[split]
        print(
            f"  {split}: {part['images']} tiles, {part['boxes']} boxes; "
            f"{part['boxes_in_no_tile']} trees lie in no tile"
        )
    print(f"  unlabelled: {result['unlabelled']['images']} tiles")
    return 0


if __name__ == "__main__":
    sys.exit(main())
