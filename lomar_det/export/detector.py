"""The whole detector, one image of any size at a time, as TorchScript and ONNX."""

from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor

from ..errors import UserError
from .compare import difference, noise


def export_detector(
    model: GeneralizedRCNN, path: Path, size: tuple[int, int] | None = None
) -> dict:
    """The whole detector as TorchScript, for one image of any size at a time.

    It takes the image as (3, height, width) float RGB from 0 to 255 and the least score as a
    scalar, and gives boxes, classes, masks (N, 1, M, M) within their boxes, and scores.

    Args:
        model: A detector.
        path: The .ts file to write.
        size: Must be None; there is nothing to fix.

    Returns:
        What the file takes and gives, and how far it was off the model.
    """
    adapter = _detector_adapter(model, size)
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    traced.save(str(path))
    loaded = torch.jit.load(str(path), map_location=model.device)
    return _describe_detector(model, adapter, loaded)


def export_detector_onnx(
    model: GeneralizedRCNN, path: Path, size: tuple[int, int] | None = None
) -> dict:
    """The same by ONNX; see `export_detector`."""
    import onnxruntime

    adapter = _detector_adapter(model, size)
    with torch.no_grad():
        adapter(*adapter.flattened_inputs)  # fills in its outputs' names
    # torch.export cannot hold a detector, whose shapes depend on what it finds: an older exporter
    torch.onnx.export(
        adapter.eval(),
        adapter.flattened_inputs,
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["image", "threshold"],
        output_names=[*adapter.outputs_schema.keys, "image_size"],
        dynamic_axes={"image": {1: "height", 2: "width"}},
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(image: Tensor, threshold: Tensor) -> list[Tensor]:
        inputs = {"image": image.numpy(), "threshold": threshold.numpy()}
        return [torch.from_numpy(out) for out in session.run(None, inputs)]

    return _describe_detector(model, adapter, run)


def _detector_adapter(model: GeneralizedRCNN, size: tuple[int, int] | None) -> TracingAdapter:
    if size is not None:
        raise UserError("--input-size: an exported detector takes images of any size; leave it out")
    return TracingAdapter(model, _detector_inputs(model, 120, 200, 0.0), _infer)


def _infer(model: GeneralizedRCNN, inputs: list[dict], threshold: Tensor) -> Instances:
    """One image, the least score as an input of the graph."""
    predictors = [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)]
    before = [predictor.test_score_thresh for predictor in predictors]
    for predictor in predictors:
        predictor.test_score_thresh = threshold
    try:
        return model.inference(inputs, do_postprocess=False)[0]
    finally:
        for predictor, value in zip(predictors, before, strict=True):
            predictor.test_score_thresh = value


def _detector_inputs(
    model: GeneralizedRCNN, height: int, width: int, threshold: float
) -> tuple[list[dict], Tensor]:
    image = noise(model, 1, height, width)[0] * 40 + 120
    return [{"image": image}], torch.tensor(threshold, device=model.device)


def _describe_detector(
    model: GeneralizedRCNN, adapter: TracingAdapter, run: Callable[..., list[Tensor]]
) -> dict:
    fields, checked = adapter.outputs_schema.keys, []
    # with as many detections as there can be, and with none
    for height, width, least in ((120, 200, 0.0), (64, 64, 0.0), (333, 90, 0.0), (200, 256, 1.0)):
        images, threshold = _detector_inputs(model, height, width, least)
        with torch.no_grad():
            expected = _infer(model, images, threshold).get_fields()
            found = run(images[0]["image"], threshold)
        pairs = [
            (getattr(expected[name], "tensor", expected[name]), out)
            for name, out in zip(fields, found, strict=False)
        ]
        checked.append({"input": [3, height, width], "difference": difference(pairs)})
    return {
        "inputs": [
            {"name": "image", "shape": [3, "height", "width"], "values": "RGB, 0 to 255"},
            {"name": "threshold", "shape": [], "values": "least score, 0 to 1"},
        ],
        "outputs": [*fields, "image_size"],
        "checked": checked,
    }
