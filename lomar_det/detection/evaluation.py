"""COCO metrics: detectron2's evaluator, computed by pycocotools or, much faster, by hotcoco."""

import importlib.util
import warnings
from unittest import mock

from detectron2.evaluation import COCOEvaluator, coco_evaluation
from tabulate import tabulate

from ..errors import UserError

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
    """detectron2's `COCOEvaluator` with a choice of who computes, and classes always listed.

    Both backends give the same numbers, bit for bit. detectron2's own compiled variant does not
    promise that and is not used.

    Args:
        dataset_name: Registered name of a COCO-format set.
        backend: ``pycocotools`` or ``hotcoco`` (``pip install hotcoco``).
        max_dets_per_image: N of AP, APs, ... and of AR (maxDets = 1, 10, N); None is COCO's 100.
            More than 100 makes AP higher on crowded images: not comparable with COCO's.
        **kwargs: As of the base class.

    Raises:
        UserError: the backend is unknown or not installed.
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
        self._hotcoco = None
        if backend == "hotcoco":
            import hotcoco

            self._hotcoco = hotcoco.COCOeval
            self._use_fast_impl = True  # makes the base class ask for COCOeval_opt
            try:
                self._coco_api = hotcoco.COCO(_essentials(self._coco_api.dataset))
            except ValueError as error:  # ids that are no numbers, for one
                raise UserError(
                    f"hotcoco cannot read {self._metadata.json_file} ({error}); use "
                    "data.evaluator=pycocotools"
                ) from None

    def _eval_predictions(self, predictions: list[dict], img_ids=None) -> None:
        """The base class's; hotcoco's class stands in for the two that it would use."""
        if self._hotcoco is None:
            return super()._eval_predictions(predictions, img_ids)
        replaced = {"COCOeval_opt": self._hotcoco, "COCOevalMaxDets": self._hotcoco}
        with mock.patch.multiple(coco_evaluation, **replaced), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="hotcoco: max_dets differ")  # as asked for
            super()._eval_predictions(predictions, img_ids)

    def _derive_coco_results(self, coco_eval, iou_type: str, class_names=None) -> dict:
        """The base class leaves out the classes where there is only one."""
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is not None and class_names is not None and len(class_names) == 1:
            results[f"AP-{class_names[0]}"] = results["AP"]
            table = tabulate([(class_names[0], results["AP"])], ["category", "AP"], "pipe")
            self._logger.info("Per-category %s AP: \n%s", iou_type, table)
        return results


def _essentials(dataset: dict) -> dict:
    """What the metrics need; hotcoco is strict about the types of everything else, too."""
    keys = {
        "images": ("id", "width", "height"),
        "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"),
        "categories": ("id", "name"),
    }
    return {
        section: [{key: entry[key] for key in names if key in entry} for entry in dataset[section]]
        for section, names in keys.items()
    }
