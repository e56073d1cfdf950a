"""Pictures of detections."""

import json
from collections import defaultdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

TRUTH, DETECTION = "#39d353", "#ff7b00"


def detections_sheet(
    annotations: str | Path,
    images: str | Path,
    results: str | Path,
    output: str | Path,
    min_score: float = 0.5,
    max_images: int = 6,
) -> Path:
    """Draws detections over ground truth, for the pictures with the most objects.

    Args:
        annotations: COCO-format ground truth.
        images: Folder of its pictures.
        results: Detections in COCO's results format (``inference/coco_instances_results.json``).
        output: The PNG to write.
        min_score: Detections below are left out.
        max_images: How many pictures.
    """
    truth = json.loads(Path(annotations).read_text())
    boxes, detections = defaultdict(list), defaultdict(list)
    for annotation in truth["annotations"]:
        boxes[annotation["image_id"]].append(annotation["bbox"])
    for result in json.loads(Path(results).read_text()):
        if result["score"] >= min_score:
            detections[result["image_id"]].append(result["bbox"])
    chosen = sorted(truth["images"], key=lambda image: -len(boxes[image["id"]]))[:max_images]
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(4 * columns, 4 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, image in zip(axes, chosen, strict=False):
        with Image.open(Path(images, image["file_name"])) as picture:
            axis.imshow(picture.convert("RGB"))
        for color, group in ((TRUTH, boxes), (DETECTION, detections)):
            for x, y, width, height in group[image["id"]]:
                box = Rectangle((x, y), width, height, fill=False, edgecolor=color, linewidth=1.5)
                axis.add_patch(box)
        axis.set_title(
            f"{len(boxes[image['id']])} objects, {len(detections[image['id']])} detections",
            fontsize=9,
        )
    handles = [Line2D([], [], color=TRUTH), Line2D([], [], color=DETECTION)]
    labels = ["ground truth", f"detections, score at least {min_score:g}"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    return Path(output)
