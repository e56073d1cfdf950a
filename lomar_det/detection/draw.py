"""Draws objects into their images: detections and annotations."""

import colorsys
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path

import numpy as np
from detectron2.structures import Boxes, Instances
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw, ImageFont

from ..data.images import load_box

CROWD = 50
OVERVIEW = 2048  # longest side of the drawing of a large image
DETAIL, NUM_DETAILS = 1024, 4  # parts of it that are drawn at its own scale


def detections_sheet(
    annotations: str | Path,
    images: str | Path,
    results: Mapping[str, str | Path],
    output: str | Path,
    min_score: float = 0.5,
    max_images: int = 4,
) -> Path:
    """Draws ground truth and the detections of several detectors side by side.

    A row shows one image; the images are spread evenly over the file. Each class has a colour.

    Args:
        annotations: COCO-format ground truth.
        images: Folder of its images.
        results: Title of a column -> detections in COCO's results format
            (``inference/coco_instances_results.json``).
        output: The PNG or JPEG to write, in a folder that exists.
        min_score: Detections with a lower score are left out.
        max_images: At most this many images.
    """
    truth = json.loads(Path(annotations).read_text("utf-8"))
    columns = {"ground truth": truth["annotations"]}
    for title, path in results.items():
        detections = json.loads(Path(path).read_text("utf-8"))
        columns[title] = [d for d in detections if d["score"] >= min_score]
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    colors = {c["id"]: [v / 255 for v in distinct_color(i)] for i, c in enumerate(categories)}
    chosen = truth["images"][:: math.ceil(len(truth["images"]) / max_images)]
    size = (3.6 * len(columns), 2.8 * len(chosen) + 0.4)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.subplots(len(chosen), len(columns), squeeze=False)
    for axes, image in zip(grid, chosen, strict=True):
        with Image.open(Path(images, image["file_name"])) as opened:
            pixels = opened.convert("RGB")
        for axis, (title, objects) in zip(axes, columns.items(), strict=True):
            axis.imshow(pixels)
            axis.set_axis_off()
            own = [o for o in objects if o["image_id"] == image["id"]]
            for o in own:
                x, y, width, height = o["bbox"]
                style = {"fill": False, "edgecolor": colors[o["category_id"]], "linewidth": 1.5}
                axis.add_patch(Rectangle((x, y), width, height, **style))
            axis.set_title(f"{title}: {len(own)}", fontsize=9)
    handles = [Line2D([], [], color=colors[category["id"]]) for category in categories]
    names = [category["name"] for category in categories]
    title = f"detections with a score of at least {min_score:g}"
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), title=title)
    figure.savefig(output)
    return Path(output)


def draw_detections(
    image: Image.Image, instances: Instances, class_names: Sequence[str]
) -> Image.Image:
    """Draws boxes, masks and labels into a copy of an image, see `draw_objects`.

    With several classes, each class has its own colour; with one class, each instance has.

    Args:
        image: RGB.
        instances: What a `Predictor` returns for the image.
        class_names: Names of the classes, in the detector's order.
    """
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    return draw_objects(
        image,
        instances.pred_boxes.tensor.tolist(),
        [f"{class_names[c]} {100 * s:.0f}%" for c, s in zip(classes, scores, strict=True)],
        [distinct_color(c if len(class_names) > 1 else i) for i, c in enumerate(classes)],
        instances.pred_masks.regions() if instances.has("pred_masks") else None,
    )


def draw_large(
    path: Path, instances: Instances, class_names: Sequence[str]
) -> Iterator[tuple[str, Image.Image]]:
    """Drawings of an image that is read by region: all of it, reduced, and its fullest parts.

    Yields:
        What to append to a file's name, and the drawing: at most `OVERVIEW` pixels wide or high,
        `NUM_DETAILS` times `DETAIL` pixels.
    """
    height, width = instances.image_size
    side = max(height, width)
    shrink = max(1.0, side / OVERVIEW)
    enough = max(1, round(height / shrink)), max(1, round(width / shrink))
    overview = Image.fromarray(load_box(path, lambda *_: (0, 0, height, width), enough))
    overview = overview.resize(enough[::-1])
    yield (
        "",
        draw_detections(overview, _crop(instances, (0, 0, width, height), shrink), class_names),
    )
    centres = instances.pred_boxes.get_centers()
    cells = Counter(map(tuple, (centres // DETAIL).long().tolist()))
    for number, ((column, row), _) in enumerate(cells.most_common(NUM_DETAILS), start=1):
        left, top = column * DETAIL, row * DETAIL
        right, bottom = min(left + DETAIL, width), min(top + DETAIL, height)
        box = top, left, bottom - top, right - left
        pixels = load_box(path, lambda *_: box, (DETAIL, DETAIL))  # noqa: B023
        part = _crop(instances, (left, top, right, bottom))
        yield f"_{number}", draw_detections(Image.fromarray(pixels), part, class_names)


def _crop(instances: Instances, box: tuple[int, int, int, int], shrink: float = 1.0) -> Instances:
    """The instances whose centres lie in a box (x0, y0, x1, y1), in its pixels; without masks."""
    left, top, right, bottom = box
    x, y = instances.pred_boxes.get_centers().unbind(1)
    inside = instances[(x >= left) & (x < right) & (y >= top) & (y < bottom)]
    part = Instances((round((bottom - top) / shrink), round((right - left) / shrink)))
    boxes = inside.pred_boxes.tensor
    part.pred_boxes = Boxes((boxes - boxes.new_tensor([left, top, left, top])) / shrink)
    part.scores, part.pred_classes = inside.scores, inside.pred_classes
    return part


def draw_objects(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    masks: Iterable[tuple[int, int, np.ndarray]] | None = None,
) -> Image.Image:
    """Draws boxes, masks and labels into a copy of an image, labels of the first objects on top.

    Lines and letters grow with the image, but stay small compared to the object. Among more than
    `CROWD` objects, a box that is narrower than its label gets no label.

    Args:
        image: RGB.
        boxes: (x0, y0, x1, y1) in pixels.
        labels: The label of each box.
        colors: The colour of each box, RGB.
        masks: For each box a region (x, y, mask), as `InstanceMasks.regions` yields them.
    """
    image = image.copy()
    draw = ImageDraw.Draw(image)
    side = math.sqrt(image.width * image.height)
    regions = repeat(None) if masks is None else masks
    texts = []
    for box, label, color, region in zip(boxes, labels, colors, regions, strict=False):
        extent = min(box[2] - box[0], box[3] - box[1])
        if region is not None:
            x, y, mask = region
            image.paste(color, (x, y), Image.fromarray((mask * 110).astype("uint8")))
        draw.rectangle(box, outline=color, width=max(1, round(min(side / 350, extent / 20))))
        texts.append((box, label, round(max(10, min(side / 50, extent / 4))), color))
    for box, text, size, color in reversed(texts):  # on top of all boxes
        font = ImageFont.load_default(size)
        width, height = draw.textlength(text, font) + 0.4 * size, 1.2 * size
        if len(texts) > CROWD and width > box[2] - box[0]:
            continue
        # above the box, but within the image
        x, y = max(min(box[0], image.width - width), 0), max(box[1] - height, 0)
        draw.rectangle((x, y, x + width, y + height), fill=color)
        draw.text((x + 0.2 * size, y), text, fill="black", font=font)
    return image


def distinct_color(index: int) -> tuple[int, int, int]:
    """A bright colour for each index; those of neighbours are far apart on the colour wheel."""
    rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 1.0)
    return tuple(round(255 * value) for value in rgb)
