"""Detections of many images, as JSON and drawn: what `tools/demo.py` runs."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.structures import Instances
from tqdm import tqdm

from ..config.settings import DetectionSettings
from ..data.image_files import IMAGE_SUFFIXES, find_image_files
from ..data.images import find_regions, load_image
from ..engine.setup import setup_run
from ..errors import UserError, user_message
from .draw import draw_detections, draw_large
from .formats import CocoDataset, read_georeference, to_geojson
from .predictor import Predictor
from .yaml_route import load_any_config

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> list[str]:
    """Runs a detector on images; returns a message for each image that could not be read.

    Writes ``instances.json`` and, without ``--no-pictures``, a drawing of every image.

    Raises:
        UserError: anything the user can mend.
    """
    output = Path(args.output).expanduser()
    paths = find_image_files(args.input)
    _refuse_output_among(paths, output)
    cfg = load_any_config(args.config_file, args.opts)
    setup_run(replace(DetectionSettings.read(cfg, "train"), output_dir=str(output)))
    predictor = Predictor(
        cfg,
        confidence_threshold=args.confidence_threshold,
        max_detections=args.max_detections,
        tile_size=args.tile_size,
        tile_overlap=args.tile_overlap,
        classes=args.classes,
        batch_size=args.batch_size,
    )
    names = [category["name"] for category in predictor.categories]
    logger.info("%d images, %d classes: %s", len(paths), len(names), _shorten(names))
    return predict_images(predictor, paths, output, not args.no_pictures, args.format)


def _refuse_output_among(paths: list[Path], output: Path) -> None:
    folder = output.resolve()
    inside = [path for path in paths if folder in path.resolve().parents]
    if inside:
        raise UserError(
            f"--output {output} is the folder of {inside[0]}: choose another folder, because "
            "drawings could overwrite images or be taken as input"
        )


def predict_images(
    predictor: Predictor,
    paths: list[Path],
    output: Path,
    draw: bool = True,
    formats: Sequence[str] = ("results",),
) -> list[str]:
    """Writes the detections and, with ``draw``, a drawing of every image.

    Drawings keep the paths of their images, relative to the folder that all images share. Of an
    image that is read by region, all of it is drawn, reduced, and its fullest parts.

    - ``results``: ``instances.json``, a list in COCO's results format; every instance also has the
      ``file_name`` of its image.
    - ``coco``: ``detections.json``, a COCO data set that label tools import, with scores.
    - ``geojson``: beside the drawings, one ``.geojson`` for each image, in the coordinates of a
      raster that has some, else in pixels.

    ``image_id`` counts the images from 1. The files are written even if an error ends the run.

    Returns:
        One message for every image that could not be read or written.
    """
    root = Path(os.path.commonpath([path.parent.absolute() for path in paths]))
    names = [category["name"] for category in predictor.categories]
    results, dataset = [], CocoDataset(predictor.categories)
    failures, number, shrunk = [], 0, 0
    try:
        # without a terminal, one line a minute
        progress = tqdm(paths, unit="image", mininterval=0.5 if sys.stderr.isatty() else 60)
        for image_id, path in enumerate(progress, start=1):
            name = path.absolute().relative_to(root)
            try:
                is_large = find_regions(path) is not None
                image = path if is_large else load_image(path)
                instances = predictor(image)
                number += len(instances)
                if "results" in formats:
                    results += to_coco_results(instances, image_id, str(name), predictor.categories)
                if "coco" in formats:
                    dataset.add(image_id, str(name), instances)
                if "geojson" in formats:
                    place = read_georeference(path)
                    features = to_geojson(instances, predictor.categories, place)
                    _write_json(output / name.with_name(f"{name.name}.geojson"), features)
                shrunk += max(instances.image_size) > 1.5 * predictor.image_size
                if draw and is_large:
                    for ending, drawing in draw_large(path, instances, names):
                        _save(drawing, output / name.with_name(f"{name.name}{ending}.jpg"))
                elif draw:
                    _save(draw_detections(image, instances, names), output / name)
            except UserError as error:
                failures.append(user_message(error))
                logger.error(failures[-1])
    finally:
        if "results" in formats:
            _write_json(output / "instances.json", results)
        if "coco" in formats:
            _write_json(output / "detections.json", dataset.content)
    logger.info("%d instances in %d images: %s", number, len(paths) - len(failures), output)
    if shrunk and not predictor.tile_size:
        logger.warning(
            "%d images are much larger than the %d pixels that the detector sees, and were shrunk. "
            "If it was trained on tiles, or if objects are small, use --tile-size %d",
            shrunk,
            predictor.image_size,
            predictor.image_size,
        )
    if failures:
        logger.error(
            "%d of %d images failed:\n  %s", len(failures), len(paths), "\n  ".join(failures)
        )
    return failures


def to_coco_results(
    instances: Instances, image_id: int, file_name: str, categories: list[dict]
) -> list[dict]:
    """Instances in COCO's results format, plus the image's file name."""
    boxes = instances.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    results = [
        {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": categories[kind]["id"],
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 4),
        }
        for kind, box, score in zip(
            instances.pred_classes.tolist(), boxes.tolist(), instances.scores.tolist(), strict=True
        )
    ]
    if instances.has("pred_masks"):
        for result, rle in zip(results, instances.pred_masks.to_rle(), strict=True):
            result["segmentation"] = rle
    return results


def _write_json(path: Path, content: list | dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None


def _save(image, path: Path) -> None:
    """Saves a drawing under its image's name and format, so that no two drawings collide."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        path = path.with_name(path.name + ".png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
    except (OSError, ValueError) as error:  # a full disk, or an image too large for the format
        raise UserError(f"{path} cannot be written: {error}") from None


def _shorten(names: list[str], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
