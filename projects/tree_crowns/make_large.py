"""Makes an image of any size from the annotated aerial images, with the boxes of its trees.

    python projects/tree_crowns/make_large.py --split train --side 40000 --output datasets/large

It is a mosaic of parts of one image, each shifted, flipped and brightened at random: a tiled
BigTIFF with JPEG compression, too large to be opened whole, and a COCO file with this one image.
Needs rasterio (``pip install 'lomar-det[large]'``).
"""

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import rasterio
from prepare_data import TRAIN, VAL, check_wheel, fetch_wheel, load_image  # in this folder
from rasterio.enums import Resampling
from rasterio.windows import Window
from tiling import boxes_in_tile  # in this folder
from tqdm import tqdm

from lomar_det.data.tiles import Box

PART = 1024  # pixels of the side of a part, a multiple of the file's tiles
MIN_AREA = 0.5  # least share of a tree that must lie in its part
SOURCES = {"train": TRAIN, "val": VAL}


def draw_part(
    pixels: np.ndarray, boxes: list[Box], size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, list[Box]]:
    """A random part of an image, flipped and brightened at random, with its boxes.

    Args:
        pixels: The image, (height, width, 3).
        boxes: Its boxes.
        size: (height, width) of the part, at most those of the image.
        rng: Draws.
    """
    height, width = size
    top = int(rng.integers(pixels.shape[0] - height + 1))
    left = int(rng.integers(pixels.shape[1] - width + 1))
    part = pixels[top : top + height, left : left + width] * rng.uniform(0.8, 1.2)
    part = part.clip(0, 255).astype(np.uint8)
    own = list(boxes_in_tile(boxes, (left, top, left + width, top + height), MIN_AREA))
    if rng.random() < 0.5:
        part, own = part[:, ::-1], [(width - x1, y0, width - x0, y1) for x0, y0, x1, y1 in own]
    if rng.random() < 0.5:
        part, own = part[::-1], [(x0, height - y1, x1, height - y0) for x0, y0, x1, y1 in own]
    return part, own


def make_large(
    pixels: np.ndarray, boxes: list[Box], side: int, output: Path, name: str, seed: int = 0
) -> tuple[Path, Path]:
    """Writes ``NAME.tif`` and ``NAME.json`` into a folder that exists; returns both paths."""
    rng = np.random.default_rng(seed)
    image, annotations = output / f"{name}.tif", []
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "yes"}
    layout |= {"compress": "jpeg", "photometric": "ycbcr", "jpeg_quality": 85}
    shape = {"width": side, "height": side, "count": 3, "dtype": "uint8"}
    with rasterio.open(image, "w", "GTiff", **shape, **layout) as file:
        for top in tqdm(range(0, side, PART), f"writing {image.name}", unit="row"):
            for left in range(0, side, PART):
                size = min(PART, side - top), min(PART, side - left)
                part, own = draw_part(pixels, boxes, size, rng)
                file.write(part.transpose(2, 0, 1), window=Window(left, top, *size[::-1]))
                for x0, y0, x1, y1 in own:
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": 1,
                            "category_id": 1,
                            "bbox": [left + x0, top + y0, x1 - x0, y1 - y0],
                            "area": (x1 - x0) * (y1 - y0),
                            "iscrowd": 0,
                        }
                    )
    with rasterio.open(image, "r+") as file:
        file.build_overviews([2**i for i in range(1, 8) if side >> i >= 256], Resampling.average)
    coco = {
        "info": {"description": "Mosaic of aerial images of deepforest 2.1.0 (MIT)"},
        "images": [{"id": 1, "file_name": image.name, "width": side, "height": side}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "tree"}],
    }
    path = output / f"{name}.json"
    path.write_text(json.dumps(coco), "utf-8")
    return image, path


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make a large image of trees.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--split", choices=SOURCES, default="train", help="which image it is from")
    parser.add_argument("--side", type=int, default=40_000, help="its side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wheel", type=Path, help="the wheel of deepforest, downloaded by hand")
    args = parser.parse_args(argv)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            path = fetch_wheel(Path(scratch)) if args.wheel is None else check_wheel(args.wheel)
            with zipfile.ZipFile(path) as wheel:
                image, boxes = load_image(wheel, SOURCES[args.split])
        name = f"trees_{args.split}_{args.side}"
        written = make_large(np.asarray(image), boxes, args.side, args.output, name, args.seed)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(f"wrote {path}, {path.stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
