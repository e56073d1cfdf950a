"""Timing the detector against detectron2's own ViTDet, in the same run.

Shapes: B images.
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ..config.lazy import CONFIGS, load_config, thawed
from ..engine.compilation import compile_blocks
from ..modeling.build import build_model
from .breakdown import PART_COLUMNS, break_down
from .cost import analyze
from .timing import align, describe_machine, format_rows, matrix_rate, measure_step

THEIRS, OURS, COMPILED = "detectron2", "lomar_det", "lomar_det, compiled"
COLUMNS = {
    "case": "",
    "model": "",
    "ms": ".1f",
    "spread": ".1f",
    "img/s": ".1f",
    "x detectron2": ".2f",
    "peak_gib": ".1f",
    "of its memory": ".0%",
    "of ceiling": ".0%",
    "busy": ".0%",
    "waits": ".0f",
    "first_s": ".1f",
}
OBJECTS = 10  # per image


def benchmark_detection(device: torch.device, tiny: bool = False) -> dict:
    """Times backbone, whole training step and inference of ViT-B's Mask R-CNN at 1024x1024.

    Random weights, random images with ten objects each; bf16 on CUDA, fp32 elsewhere. The rows
    "detectron2" are its own ViT with decomposed positions and its own pyramid in the same detector.
    On CUDA, ours is also timed as ``train.compile`` has it.

    Args:
        device: Where.
        tiny: Small models and images, to see that it runs.

    Returns:
        ``machine``, with ``ceiling`` in TFLOP/s of a large matrix product in the same run.
        ``rows``: ``case``, ``model``, median ``ms`` and ``spread`` (quartiles), ``img/s``,
        ``x detectron2``, ``waits`` (see `break_down`) and ``first_s``, the seconds of the first
        step, with compilation; for the backbone, ``of ceiling``, its own operations (three times
        the forward pass); on CUDA, ``peak_gib``, what that is ``of its memory`` (detectron2's), and
        ``busy``, the share of the time in which the GPU computes.
        ``parts``: where the time goes, by ``case`` and ``model``, see `break_down`.
    """
    batch, size = (1, 64) if tiny else (4, 1024)
    cuda = device.type == "cuda"
    ceiling = matrix_rate(device, torch.bfloat16 if cuda else torch.float32, 256 if tiny else 8192)
    flops = {}
    for name, model in _models(torch.device("meta"), size, tiny):
        costs = analyze(model, size, size)
        flops[name] = 3 * (costs["backbone"].flops + costs["feature pyramid"].flops)
    flops[COMPILED] = flops[OURS]
    rows, parts = [], []
    for title, prepare, number in (
        (f"backbone and pyramid, forward + backward, batch {batch}", _backbone_step, batch),
        (f"training step, batch {batch}", _training_step, batch),
        ("inference, batch 1", _inference, 1),
    ):
        theirs: dict = {}
        for name, model in _models(device, size, tiny):
            step = prepare(model, number, size, device)
            row = {"case": title, "model": name}
            row |= measure_step(step, device, *((2, 1) if tiny else ()))
            row["img/s"] = number / row["ms"] * 1e3
            theirs = theirs or row
            row["x detectron2"] = row["img/s"] / theirs["img/s"]
            found = break_down(model, step, device, *((1,) if tiny else ()))
            parts += [{"case": title, "model": name} | part for part in found]
            row["waits"] = sum(part["waits"] for part in found)
            if cuda:
                row["of its memory"] = row["peak_gib"] / theirs["peak_gib"]
                row["busy"] = sum(p["forward"] + p["backward"] for p in found) / row["ms"]
            if prepare is _backbone_step:
                row["of ceiling"] = number * flops[name] / row["ms"] / 1e9 / ceiling
            rows.append(row)
            del model, step
    machine = describe_machine(device) | {"ceiling": f"{ceiling:.3g} TFLOP/s"}
    return {"machine": machine, "rows": rows, "parts": parts}


def format_detection(result: dict) -> str:
    """The result as two tables: the steps, and where their time goes."""
    return f"{format_rows(result, COLUMNS)}\n\n{align(result['parts'], PART_COLUMNS)}"


def _models(device: torch.device, size: int, tiny: bool) -> Iterator[tuple[str, nn.Module]]:
    """One after the other, so that the memory of one is free before the next."""
    name = "custom/mask_rcnn_lomar_vit_tiny.py" if tiny else "coco/mask_rcnn_lomar_vit_b_25ep.py"
    ours = thawed(load_config(CONFIGS / name, []))
    ours.model.backbone.square_pad = size
    net = ours.model.backbone.net
    net.img_size = size
    theirs = copy.deepcopy(ours.model)
    indexes = instantiate(net.window_block_indexes)
    keys = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "drop_path_rate")
    theirs.backbone._target_ = SimpleFeaturePyramid
    theirs.backbone.net = L(ViT)(
        **{key: net[key] for key in (*keys, "window_size", "out_feature")},
        window_block_indexes=indexes,
        use_rel_pos=True,
        residual_block_indexes=[],
        pretrain_use_cls_token=True,
    )
    torch.manual_seed(0)
    yield THEIRS, instantiate(theirs).to(device)  # with its own norms, too
    torch.manual_seed(0)
    yield OURS, build_model(ours).to(device)
    if device.type == "cuda":
        torch.manual_seed(0)
        model = build_model(ours).to(device)
        compile_blocks(model)
        yield COMPILED, model
        del model


def _autocast(device: torch.device):
    cuda = device.type == "cuda"
    return torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext()


def _backbone_step(model: nn.Module, batch: int, size: int, device: torch.device):
    backbone = model.backbone.train()
    images = torch.randn(batch, 3, size, size, device=device)

    def step() -> None:
        backbone.zero_grad()
        with _autocast(device):
            features = backbone(images)
        sum(feature.float().mean() for feature in features.values()).backward()

    return step


def _training_step(model: nn.Module, batch: int, size: int, device: torch.device):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = [_image(size, device, seed) for seed in range(batch)]

    def step() -> None:
        optimizer.zero_grad()
        with EventStorage(), _autocast(device):
            losses = model(images)
        sum(losses.values()).backward()
        optimizer.step()

    return step


def _inference(model: nn.Module, batch: int, size: int, device: torch.device):
    model.eval()
    images = [_image(size, device, seed) for seed in range(batch)]

    @torch.no_grad()
    def step() -> None:
        with _autocast(device):
            model(images)

    return step


def _image(size: int, device: torch.device, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(OBJECTS, 2, generator=generator) * size * 0.6
    sides = (0.1 + 0.3 * torch.rand(OBJECTS, 2, generator=generator)) * size
    boxes = torch.cat([corners, corners + sides], dim=1)
    masks = torch.zeros(OBJECTS, size, size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances((size, size), gt_boxes=Boxes(boxes), gt_masks=BitMasks(masks))
    instances.gt_classes = torch.randint(OBJECTS, (OBJECTS,), generator=generator)
    image = torch.randint(256, (3, size, size), generator=generator, dtype=torch.uint8)
    return {
        "image": image.to(device),
        "instances": instances.to(device),
        "height": size,
        "width": size,
    }
