"""Parameters, FLOPs and activations of a model from its shapes alone: nothing is computed.

One FLOP is one addition or multiplication, so that a multiply-add counts as two, as in
torch.utils.flop_counter; many papers count it as one. Matrix products and convolutions count,
the two of attention and iRPE's lookup included; norms, activation functions and softmax do not.
Activations are the values that these operations put out (as in fvcore).
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.modeling import GeneralizedRCNN
from fvcore.nn import parameter_count_table
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ..config.lazy import require_sections
from ..config.rules import check_settings, pair, whole
from ..detection.yaml_route import load_any_config
from ..errors import UserError
from ..modeling.build import build_model

NUM_DETECTIONS = 100  # what the mask head is counted for


@dataclass(frozen=True)
class Cost:
    """What a part of a model does for one image."""

    flops: int
    activations: int


def main(args: argparse.Namespace) -> dict[str, Cost]:
    """Prints the tables of a config's model; returns the costs by part.

    Raises:
        UserError: anything the user can mend.
    """
    cfg = load_any_config(args.config_file, args.opts)
    require_sections(cfg, args.config_file, "", "model._target_", "data")
    model = build_model(cfg)
    is_detector = isinstance(model, GeneralizedRCNN)
    size = args.input_size or (cfg.data.image_size if is_detector else model.img_size)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    rule = {"--input-size": pair(whole(1))}
    check_settings({"--input-size": (height, width)}, rule)
    costs = analyze(model, height, width)
    print(parameter_count_table(model, max_depth=3 if is_detector else 2))
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{total / 1e6:.1f} million parameters in all")
    rows = [
        (name, f"{cost.flops / 1e9:.3f}", f"{cost.activations / 1e6:.3f}")
        for name, cost in costs.items()
    ]
    print(f"\nForward pass of one image of {height} x {width} pixels:")
    print(tabulate(rows, ["part", "GFLOP", "M activations"], disable_numparse=True))
    print("A multiply-add counts as two FLOPs. Attention counts as the backend eager does it.")
    if is_detector:
        proposals = model.proposal_generator.post_nms_topk[False]
        print(f"Heads: {proposals} proposals, {NUM_DETECTIONS} detections.")
    return costs


def analyze(model: nn.Module, height: int, width: int) -> dict[str, Cost]:
    """Costs of a forward pass, by part and in ``total``; leaves the model without weights.

    A detector's heads are counted for as many proposals as it keeps and `NUM_DETECTIONS` masks,
    so that the figures do not depend on an image.

    Args:
        model: A detector, or any model that takes (B, 3, height, width).
        height, width: Pixels of the image.

    Raises:
        UserError: the model does not take images of this size.
    """
    model = model.to("meta").eval()
    image = torch.empty(1, 3, height, width, device="meta")
    parts = _detector_parts if isinstance(model, GeneralizedRCNN) else _model_parts
    try:
        flops = parts(model, image, {})
        # the same walk, with the size of the output in place of every formula
        activations = parts(model, image, dict.fromkeys(flop_registry, _output_size))
    except ValueError as error:
        raise UserError(f"--input-size {height} {width}: {error}") from None
    costs = {name: Cost(count, activations[name]) for name, count in flops.items()}
    total = Cost(sum(flops.values()), sum(activations.values()))
    return costs | {"total": total}


def _output_size(*_, out_shape=None, **__) -> int:
    """A formula of FlopCounterMode; of several outputs the first is the result."""
    first = out_shape[0]
    return math.prod(out_shape if isinstance(first, int) else first)


def _count(work: Callable[[], object], formulas: dict) -> tuple[int, dict[str, int]]:
    """The count of all operations, and of those in each module that was called."""
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter, torch.no_grad():
        work()
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return counter.get_total_flops(), by_module


def _model_parts(model: nn.Module, image: Tensor, formulas: dict) -> dict[str, int]:
    """By the model's children, and what it does itself."""
    total, by_module = _count(lambda: model(image), formulas)
    root = type(model).__name__
    parts = {}
    for name, child in model.named_children():
        # a list of modules is not called itself
        called = [f"{name}.{i}" for i in range(len(child))] if _is_list(child) else [name]
        count = sum(by_module.get(f"{root}.{key}", 0) for key in called)
        if count:
            parts[name] = count
    rest = total - sum(parts.values())
    return parts | ({"outside its modules": rest} if rest else {})


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList)


def _detector_parts(model: GeneralizedRCNN, image: Tensor, formulas: dict) -> dict[str, int]:
    features: dict[str, Tensor] = {}
    total, by_module = _count(lambda: features.update(model.backbone(image)), formulas)
    root = type(model.backbone).__name__
    encoder = by_module[f"{root}.net"]
    rpn, heads = model.proposal_generator, model.roi_heads
    regions = rpn.post_nms_topk[False]

    def pooled(number: int, pooler: nn.Module) -> Tensor:
        channels = next(iter(features.values())).shape[1]
        return image.new_empty(number, channels, *pooler.output_size)

    def classify() -> None:
        boxes, predictors = heads.box_head, heads.box_predictor
        stages = zip(boxes, predictors, strict=True) if _is_list(boxes) else [(boxes, predictors)]
        for head, predictor in stages:
            predictor(head(pooled(regions, heads.box_pooler)))

    parts = {
        "backbone": encoder,
        "feature pyramid": total - encoder,
        "proposals": _count(lambda: rpn.rpn_head([features[f] for f in rpn.in_features]), formulas),
        "box head": _count(classify, formulas),
    }
    if heads.mask_on:
        masks = pooled(NUM_DETECTIONS, heads.mask_pooler)
        parts["mask head"] = _count(lambda: heads.mask_head.layers(masks), formulas)
    return {name: part[0] if isinstance(part, tuple) else part for name, part in parts.items()}
