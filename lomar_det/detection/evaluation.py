"""COCO metrics: detectron2's evaluator, computed by pycocotools or, much faster, by hotcoco."""

import importlib.util
import itertools
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from detectron2.config import instantiate
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets, instances_to_coco_json
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from ..config.lazy import instantiate_section
from ..engine.device import autocast
from ..engine.setup import Run
from ..engine.writers import report_results
from ..errors import UserError
from .instance_masks import InstanceMasks
from .tiling import TileDetector

logger = logging.getLogger(__name__)

BATCH_SIZE = 4  # tiles in a forward pass
BACKENDS = ("pycocotools", "hotcoco")


def require_backend(name: str) -> None:
    """Raises UserError, with the remedy, if ``data.evaluator`` cannot be used."""
    if name not in BACKENDS:
        raise UserError(f"data.evaluator={name} is not one of {', '.join(BACKENDS)}")
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"data.evaluator={name} is not installed: pip install {name}, or use "
            "data.evaluator=pycocotools"
        )


class CocoEvaluator(COCOEvaluator):
    """detectron2's `COCOEvaluator` with a choice of backends, and always with AP per class.

    Both backends give the same numbers, bit for bit. detectron2's own compiled variant does not
    promise that and is not used.

    Args:
        dataset_name: Registered name of a COCO-format set.
        backend: ``pycocotools`` or ``hotcoco`` (``pip install hotcoco``).
        max_dets_per_image: N of AP, APs, ... and of AR (maxDets = 1, 10, N); None is COCO's 100.
            More than 100 makes AP higher on crowded images; it is then no longer COCO's AP.
        **kwargs: Arguments of the base class.

    Raises:
        UserError: the backend is unknown or not installed, or cannot read the annotations.
    """

    def __init__(
        self,
        dataset_name: str,
        backend: str = "pycocotools",
        max_dets_per_image: int | None = None,
        **kwargs,
    ):
        require_backend(backend)
        kwargs |= {"max_dets_per_image": max_dets_per_image, "use_fast_impl": False}
        super().__init__(dataset_name, **kwargs)
        self._backend = backend
        # pycocotools' own COCOeval takes maxDets, but always summarizes AP at 100.
        self._coco_eval = COCOevalMaxDets
        if backend == "hotcoco":
            import hotcoco

            self._coco_eval = hotcoco.COCOeval
            try:
                self._coco_api = hotcoco.COCO(_essentials(self._coco_api.dataset))
            except ValueError as error:  # for example, ids that are not numbers
                raise UserError(
                    f"hotcoco cannot read {self._metadata.json_file} ({error}); use "
                    "data.evaluator=pycocotools"
                ) from None

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """As the base class; masks of large images stay run lengths of their region."""
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            if not isinstance(instances.get_fields().get("pred_masks"), InstanceMasks):
                super().process([image], [output])
                continue
            masks = instances.pred_masks.to_rle()
            instances.remove("pred_masks")
            results = instances_to_coco_json(instances, image["image_id"])
            for result, mask in zip(results, masks, strict=True):
                result["segmentation"] = mask
            self._predictions.append({"image_id": image["image_id"], "instances": results})

    def _eval_predictions(self, predictions: list[dict], img_ids: list[int] | None = None) -> None:
        """Writes the detections as COCO results, and fills ``self._results`` with the metrics.

        This replaces the base class's method, which accepts only two ``COCOeval`` classes. The
        steps are those of detectron2 (Apache-2.0, ``evaluation/coco_evaluation.py``), for boxes and
        masks.

        Args:
            predictions: For every image its ``instances`` in COCO's results format, but with the
                model's class as ``category_id``.
            img_ids: The images to evaluate; all if None.
        """
        results = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        category_to_class = self._metadata.get("thing_dataset_id_to_contiguous_id") or {}
        category_of = {index: category for category, index in category_to_class.items()}
        if category_of:
            for result in results:
                result["category_id"] = category_of[result["category_id"]]
        if self._output_dir:
            path = Path(self._output_dir, "coco_instances_results.json")
            self._logger.info("Saving results to %s", path)
            path.write_text(json.dumps(results))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        self._logger.info("Evaluating predictions with %s ...", self._backend)
        for task in sorted(self._tasks or self._tasks_from_predictions(results)):
            # COCO's tools cannot handle empty results
            coco_eval = self._compute(results, task, img_ids) if results else None
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(coco_eval, task, names)

    def _compute(self, results: list[dict], task: str, img_ids: list[int] | None):
        """The backend's ``COCOeval`` after it has computed the metrics of ``bbox`` or ``segm``."""
        if task == "segm":
            # With a box in the entry, objects would be sorted into small, medium and large by the
            # area of the box instead of the mask's.
            results = [{k: v for k, v in result.items() if k != "bbox"} for result in results]
        coco_eval = self._coco_eval(self._coco_api, self._coco_api.loadRes(results), task)
        coco_eval.params.maxDets = self._max_dets_per_image
        if img_ids is not None:
            coco_eval.params.imgIds = img_ids
        with warnings.catch_warnings():
            # hotcoco warns of maxDets that are not COCO's, but the settings ask for them.
            warnings.filterwarnings("ignore", message="hotcoco: max_dets differ")
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        return coco_eval

    def _derive_coco_results(self, coco_eval, iou_type: str, class_names=None) -> dict:
        """Adds AP per class if there is only one class, which the base class leaves out."""
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is not None and class_names is not None and len(class_names) == 1:
            results[f"AP-{class_names[0]}"] = results["AP"]
            table = tabulate([(class_names[0], results["AP"])], ["category", "AP"], "pipe")
            self._logger.info("Per-category %s AP: \n%s", iou_type, table)
        return results


def _essentials(dataset: dict) -> dict:
    """The entries that the metrics need; hotcoco would check the types of all others, too."""
    keys = {
        "images": ("id", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"),
        "categories": ("id", "name"),
    }
    return {
        section: [{key: entry[key] for key in names if key in entry} for entry in dataset[section]]
        for section, names in keys.items()
    }


class _InTiles(nn.Module):
    """A detector for `inference_on_dataset` that detects in the tiles of ``data.tile_size``."""

    def __init__(self, model: nn.Module, cfg: DictConfig):
        super().__init__()
        self.model = model
        augmentations = instantiate(cfg.dataloader.test.mapper.augmentations)
        data = cfg.data
        self.detect = TileDetector(
            getattr(model, "module", model),
            list(augmentations),
            data.image_size,
            data.tile_size,
            data.tile_overlap,
            BATCH_SIZE,
        )

    def forward(self, inputs: list[dict]) -> list[dict]:
        return [{"instances": self.detect(image["file_name"])} for image in inputs]


def build_evaluation(cfg: DictConfig, run: Run) -> Callable[[nn.Module], dict] | None:
    """Builds the function that computes COCO metrics of a model on ``dataloader.test``.

    The function also prints the metrics and writes ``metrics_test.json``. There is none if
    ``dataloader.evaluator`` is null.
    """
    if cfg.dataloader.get("evaluator") is None:
        logger.warning("dataloader.evaluator is null: nothing is evaluated")
        return None
    size = cfg.data.get("tile_size")
    if size is None:
        loader = instantiate_section(cfg, "dataloader.test")
    else:  # the images are read tile by tile
        dataset = instantiate_section(cfg, "dataloader.test.dataset")
        loader = build_detection_test_loader(dataset, mapper=dict, num_workers=0)
    predictions = str(run.output_dir / "inference")
    evaluator = instantiate_section(cfg, "dataloader.evaluator", output_dir=predictions)
    if not isinstance(evaluator, DatasetEvaluator):
        raise UserError(
            f"dataloader.evaluator makes a {type(evaluator).__name__}, which is no DatasetEvaluator"
        )

    def evaluate(model: nn.Module) -> dict:
        if size is not None:
            model = _InTiles(model, cfg)
        with autocast(run.device, run.dtype):
            results = inference_on_dataset(model, loader, evaluator)
        report_results(results, run.output_dir)
        return results

    return evaluate
