"""COCO metrics: both backends agree, limits and ids are right, in one process and in several."""

import importlib.util
import json
import logging
import os
from collections import Counter

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from helpers.common import (
    TINY_DETECTOR,
    data_settings,
    draw_instances,
    drop_masks,
    edit_json,
    tool_args,
)
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from lomar_det.checkpoint.serialization import load_plain
from lomar_det.config.lazy import load_config
from lomar_det.config.settings import RunSettings
from lomar_det.data import configure_data, register_coco
from lomar_det.detection import train as detection
from lomar_det.detection.evaluation import CocoEvaluator, build_evaluation
from lomar_det.engine import Run
from lomar_det.engine.writers import report_results
from lomar_det.errors import UserError

pytestmark = pytest.mark.run

DETECT = "custom/mask_rcnn_lomar_vit_tiny.py"


def noisy_detections(entry, num_classes, masks):
    """Ground truth of an image, shifted, resized, doubled, partly of another class."""
    rng = np.random.default_rng(entry["image_id"])
    size = entry["height"], entry["width"]
    boxes, classes, pixels = [], [], []
    for a in [a for a in entry["annotations"] for _ in range(rng.integers(0, 4))]:
        x0, y0, x1, y1 = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        dx, dy, dw = (float(v) for v in rng.normal(0, 0.1, 3))
        w, h = x1 - x0, y1 - y0
        boxes.append([x0 + dx * w, y0 + dy * h, x1 + (dx + abs(dw)) * w, y1 + dy * h])
        right = rng.random() < 0.8
        classes.append(a["category_id"] if right else int(rng.integers(num_classes)))
        if masks:
            rle = a["segmentation"]
            if isinstance(rle, list):
                rle = mask_util.merge(mask_util.frPyObjects(rle, *size))
            pixels.append(np.roll(mask_util.decode(rle), (round(dy * h), round(dx * w)), (0, 1)))
    found = Instances(size, pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    found.pred_classes = torch.tensor(classes, dtype=torch.long)
    # in steps, so that there are ties
    found.scores = torch.as_tensor(rng.integers(1, 20, len(boxes)) / 20, dtype=torch.float32)
    if masks:
        found.pred_masks = torch.as_tensor(np.array(pixels).reshape(-1, *size)).bool()
    return found


def evaluate_noisy(annotations, images, monkeypatch, backend, output_dir=None, **settings):
    """Results, and all 12 numbers of each task, of noisy detections on a set."""
    name = "test_evaluation"
    summary = register_coco(name, annotations, images, for_evaluation=True)
    evaluator = CocoEvaluator(name, backend=backend, output_dir=output_dir, **settings)
    stats = {}
    derive = CocoEvaluator._derive_coco_results

    def spy(self, coco_eval, iou_type, class_names=None):
        stats[iou_type] = np.array(coco_eval.stats)
        return derive(self, coco_eval, iou_type, class_names)

    monkeypatch.setattr(CocoEvaluator, "_derive_coco_results", spy)
    evaluator.reset()
    for entry in DatasetCatalog.get(name):
        found = noisy_detections(entry, len(summary.class_names), summary.has_masks)
        evaluator.process([entry], [{"instances": found}])
    results = evaluator.evaluate()
    monkeypatch.undo()
    return results, stats


def cut(source, target, num_images, masks=True):
    """The small images with the most objects, as a set of its own."""
    data = json.loads(source.read_text())
    small = {i["id"] for i in data["images"] if i["width"] < 400}
    most = Counter(a["image_id"] for a in data["annotations"] if a["image_id"] in small)
    keep = {image_id for image_id, _ in most.most_common(num_images)}
    data["images"] = [i for i in data["images"] if i["id"] in keep]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in keep]
    if not masks:
        drop_masks(data)
    target.write_text(json.dumps(data))
    return target


@pytest.mark.parametrize(
    "name, max_dets",
    [
        ("coco-permissive/annotations_val", None),  # crowds, empty images, ids with holes
        ("nuclei-dsb2018/annotations_val", 100),
        ("nuclei-dsb2018/annotations_val_rle", 400),
        ("bccd-boxes/annotations_val", 20),
    ],
)
def test_hotcoco_gives_the_numbers_of_pycocotools(
    shared_data, tmp_path, monkeypatch, name, max_dets
):
    annotations = shared_data / f"{name}.json"
    images = annotations.parent / "images"
    if "nuclei" in name:
        annotations = cut(annotations, tmp_path / "cut.json", 2)
    (expected, stats), (results, other_stats) = (
        evaluate_noisy(annotations, images, monkeypatch, backend, max_dets_per_image=max_dets)
        for backend in ("pycocotools", "hotcoco")
    )
    assert results.keys() == expected.keys() == ({"bbox"} if "bccd" in name else {"bbox", "segm"})
    for task in expected:
        assert len(stats[task]) == 12 and 0.05 < stats[task][0] < 0.95
        np.testing.assert_array_equal(other_stats[task], stats[task])
        # the six and the classes; NaN is NaN for both
        assert results[task].keys() == expected[task].keys()
        np.testing.assert_array_equal([*results[task].values()], [*expected[task].values()])
        classes = {"nuclei": 1, "coco": 80, "bccd": 3}[name.split("-")[0]]
        assert len(results[task]) == 6 + classes


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
def test_ap_counts_as_many_detections_as_are_kept(shared_data, tmp_path, monkeypatch, backend):
    """Against pycocotools used directly, on images with up to 131 objects."""
    folder = shared_data / "nuclei-dsb2018"
    annotations = cut(folder / "annotations_val.json", tmp_path / "cut.json", 2, masks=False)
    ap = {}
    for limit in (100, 400):
        out = tmp_path / str(limit)
        results, _ = evaluate_noisy(
            annotations, folder / "images", monkeypatch, backend, str(out), max_dets_per_image=limit
        )
        truth = COCO(str(annotations))
        found = truth.loadRes(str(out / "coco_instances_results.json"))
        direct = COCOeval(truth, found, "bbox")
        direct.params.maxDets = [limit]
        direct.evaluate()
        direct.accumulate()
        precision = direct.eval["precision"][:, :, :, 0, 0]
        ap[limit] = 100 * precision[precision > -1].mean()
        assert results["bbox"]["AP"] == pytest.approx(ap[limit], abs=1e-9)
    assert ap[400] > ap[100] + 1  # so the limit matters here


def test_results_have_the_ids_of_the_annotation_file(drawn_set, tmp_path, monkeypatch):
    evaluate_noisy(*drawn_set, monkeypatch, "pycocotools", str(tmp_path))
    found = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {entry["category_id"] for entry in found} == {3, 7}
    assert found[0].keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
    # most detections lie on an object of their class
    truth = {
        (a["image_id"], a["category_id"])
        for a in json.loads(drawn_set[0].read_text())["annotations"]
    }
    right = sum((entry["image_id"], entry["category_id"]) in truth for entry in found)
    assert right > 0.7 * len(found)


def only_discs(data):
    data["categories"] = [{"id": 3, "name": "disc"}]
    for annotation in data["annotations"]:
        annotation["category_id"] = 3


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("classes", [1, 2])
def test_classes_are_listed_for_one_class_and_for_boxes_only(
    drawn_set, monkeypatch, caplog, classes, masks
):
    logger = logging.getLogger("detectron2.evaluation.coco_evaluation")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, logger.name)
    if classes == 1:
        edit_json(drawn_set[0], only_discs)
    if not masks:
        edit_json(drawn_set[0], drop_masks)
    results, _ = evaluate_noisy(*drawn_set, monkeypatch, "pycocotools")
    tasks = ["bbox", "segm"] if masks else ["bbox"]
    assert list(results) == tasks
    for task in tasks:
        assert f"Per-category {task} AP" in caplog.text
        assert ("AP-square" in results[task]) == (classes == 2)
        if classes == 1:
            assert results[task]["AP-disc"] == results[task]["AP"] > 0


def test_metrics_without_ground_truth_are_null(drawn_set, tmp_path, monkeypatch):
    results, _ = evaluate_noisy(*drawn_set, monkeypatch, "pycocotools")
    report_results(results, tmp_path)
    written = json.loads((tmp_path / "metrics_test.json").read_text())
    assert written["bbox"]["APl"] is None and written["bbox"]["AP"] == results["bbox"]["AP"] > 0


def test_backends_that_are_not_there_are_named_before_training(drawn_set, tmp_path, monkeypatch):
    settings = [*TINY_DETECTOR, *data_settings(*drawn_set), f"train.output_dir={tmp_path / 'out'}"]

    def start(*more):
        detection.main(tool_args(DETECT, *settings, *more))

    with pytest.raises(UserError, match="data.evaluator=fast.*hotcoco"):
        start("data.evaluator=fast")
    find_spec = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "hotcoco" else find_spec(name)
        )
        with pytest.raises(UserError, match="pip install.*hotcoco"):
            start("data.evaluator=hotcoco")

    def name_by_text(data):
        for entries, key in (("images", "id"), ("annotations", "image_id")):
            for entry in data[entries]:
                entry[key] = f"image {entry[key]}"

    edit_json(drawn_set[0], name_by_text)
    with pytest.raises(UserError, match="annotations.json.*data.evaluator=pycocotools"):
        start("data.evaluator=hotcoco")


def test_a_detector_is_evaluated_on_its_own_classes_only(drawn_set, tmp_path):
    annotations, images = drawn_set
    base = [*TINY_DETECTOR, *data_settings(annotations, images)]
    out = tmp_path / "out"
    detection.main(tool_args(DETECT, *base, f"train.output_dir={out}", "train.max_iter=1"))
    weights = out / "model_final.pth"
    assert load_plain(weights)["meta"] == {"classes": ["disc", "square"]}

    def evaluate(change):
        data = json.loads(annotations.read_text())
        change(data)
        other = tmp_path / "other.json"
        other.write_text(json.dumps(data))
        more = [f"data.val.annotations={other}", f"train.output_dir={tmp_path / 'eval'}"]
        more.append(f"train.init_checkpoint={weights}")
        return detection.main(tool_args(DETECT, *base, *more, eval_only=True))

    def keep_discs(data):
        data["categories"] = [c for c in data["categories"] if c["name"] == "disc"]
        data["annotations"] = [a for a in data["annotations"] if a["category_id"] == 3]

    def swap(data):
        for category in data["categories"]:
            category["id"] = 10 - category["id"]
        for annotation in data["annotations"]:
            annotation["category_id"] = 10 - annotation["category_id"]

    def renumber(data):
        for entry, key in [(c, "id") for c in data["categories"]] + [
            (a, "category_id") for a in data["annotations"]
        ]:
            entry[key] += 40

    with pytest.raises(UserError, match="square"):
        evaluate(keep_discs)
    with pytest.raises(UserError, match="ring"):
        evaluate(lambda d: d["categories"].append({"id": 9, "name": "ring"}))
    with pytest.raises(UserError, match="order"):
        evaluate(swap)
    assert "bbox" in evaluate(renumber)
    found = json.loads((tmp_path / "eval/inference/coco_instances_results.json").read_text())
    assert {entry["category_id"] for entry in found} <= {43, 47}


class Oracle(nn.Module):
    """Stands in for a detector: what it finds depends on the image alone."""

    def __init__(self, entries, num_classes):
        super().__init__()
        self.entries = {entry["image_id"]: entry for entry in entries}
        self.num_classes = num_classes

    def forward(self, batch):
        return [
            {"instances": noisy_detections(self.entries[x["image_id"]], self.num_classes, True)}
            for x in batch
        ]


def evaluate_oracle(rank, world_size, annotations, images, output):
    torch.set_num_threads(1)
    if world_size > 1:
        torch.distributed.init_process_group(
            "gloo", f"file://{output}.group", rank=rank, world_size=world_size
        )
        comm.create_local_process_group(world_size)
    settings = [*TINY_DETECTOR, *data_settings(annotations, images), f"train.output_dir={output}"]
    cfg = load_config(tool_args(DETECT).config_file, settings)
    os.makedirs(output, exist_ok=True)
    cfg = configure_data(cfg).apply(cfg)
    run = Run(RunSettings(output_dir=str(output)), torch.device("cpu"), torch.float32)
    evaluate = build_evaluation(cfg, run)
    evaluate(Oracle(DatasetCatalog.get("custom_val"), 2))


def test_two_processes_see_every_image_once(tmp_path):
    images, annotations = tmp_path / "images", tmp_path / "annotations.json"
    annotations.write_text(json.dumps(draw_instances(images, num_images=7)))  # not a multiple of 2
    evaluate_oracle(0, 1, annotations, images, tmp_path / "one")
    torch.multiprocessing.start_processes(
        evaluate_oracle, (2, annotations, images, tmp_path / "two"), nprocs=2, start_method="fork"
    )
    seen, metrics = [], []
    for run in ("one", "two"):
        predictions = load_plain(tmp_path / run / "inference" / "instances_predictions.pth")
        seen.append(sorted(prediction["image_id"] for prediction in predictions))
        metrics.append(json.loads((tmp_path / run / "metrics_test.json").read_text()))
    assert seen[0] == seen[1] == list(range(7))
    assert metrics[0] == metrics[1] and metrics[0]["segm"]["AP"] > 5
