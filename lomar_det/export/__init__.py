"""A trained detector, or its backbone, as a file that runs without this package.

docs/export.md says what each format is good for, and how to run it.
"""

import argparse
import importlib
import json
import sys
import warnings
from pathlib import Path

import detectron2
import torch

from ..detection.from_checkpoint import find_categories, load_detector, read_detector
from ..detection.yaml_route import load_any_config
from ..engine.device import pick_device
from ..errors import UserError
from .backbone import export_backbone, export_backbone_onnx
from .detector import export_detector, export_detector_onnx

# format -> the file that it writes, and how
FORMATS = {
    "torch_export": ("backbone.pt2", export_backbone),
    "onnx": ("backbone.onnx", export_backbone_onnx),
    "torchscript": ("detector.ts", export_detector),
    "onnx_detector": ("detector.onnx", export_detector_onnx),
}
TOLERANCE = 1e-3  # of the largest value of an output


def main(args: argparse.Namespace) -> Path:
    """Exports the detector of ``train.init_checkpoint``, checks the file, describes it in JSON.

    Raises:
        UserError: anything the user can mend; the file computes something else than the model.
    """
    cfg = load_any_config(args.config_file, args.opts)
    # a graph stays on the device that it was recorded on
    device = pick_device("cpu" if cfg.train.device == "auto" else cfg.train.device)
    if args.format.startswith("onnx"):
        _require_onnx()
        device = torch.device("cpu")
    cfg, found = read_detector(cfg)
    model = load_detector(cfg, found, device)
    name, export = FORMATS[args.format]
    path = Path(args.output, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path.parent} cannot be written: {error}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the comparison below shows what went wrong
        description = export(model, path, args.input_size and tuple(args.input_size))
    description |= {
        "format": args.format,
        "config": Path(args.config_file).name,
        "checkpoint": Path(found.path).name,
        "categories": find_categories(
            cfg, cfg.model.roi_heads.num_classes, found.meta.get("classes")
        ),
        "pixel_mean": _channels(model.pixel_mean),
        "pixel_std": _channels(model.pixel_std),
        "channels": "RGB",
        "image_size": cfg.data.image_size,  # evaluation resizes images to it
        "device": str(device),
        "versions": _versions(),
    }
    _write_checked(path, description)
    return path


def _channels(values: torch.Tensor) -> list[float]:
    """A model's numbers per channel as a config has them, without the digits of float32."""
    return [round(value, 4) for value in values.flatten().tolist()]


def _write_checked(path: Path, description: dict) -> None:
    """Prints what the comparison found and writes the description; refuses a wrong file."""
    worst = max(check["difference"] for check in description["checked"])
    for check in description["checked"]:
        print(f"input {check['input']}: largest difference {check['difference']:.2e}")
    if worst > TOLERANCE:
        path.unlink()
        raise UserError(
            f"{path} was removed: it differs from the model by {worst:.2e} of the largest value, "
            f"more than {TOLERANCE:.0e}"
        )
    path.with_name(path.name + ".json").write_text(json.dumps(description, indent=2) + "\n")
    print(f"{path} agrees with the model; {path.name}.json beside it describes it")


def _require_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(
                f"--format onnx needs {name}: pip install onnx onnxscript onnxruntime"
            ) from None


def _versions() -> dict[str, str]:
    names = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime")
    loaded = {name: sys.modules[name] for name in names if name in sys.modules}
    loaded |= {"lomar_det": sys.modules["lomar_det"], "detectron2": detectron2}
    return {name: module.__version__ for name, module in loaded.items()}
