"""Timing the detector against detectron2's own ViTDet, in the same run.

Shapes: B images.
"""

import contextlib
import copy
from collections.abc import Callable

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ..engine.config import CONFIGS, load_config
from .timing import describe_machine, measure_step

COLUMNS = {
    "case": "",
    "model": "",
    "ms": ".1f",
    "img/s": ".1f",
    "x detectron2": ".2f",
    "peak_gib": ".1f",
    "first_s": ".1f",
}
OBJECTS = 10  # per picture


def benchmark_detection(device: torch.device, tiny: bool = False) -> dict:
    """Times backbone, whole training step and inference of ViT-B's Mask R-CNN at 1024x1024.

    Random weights, random pictures with ten objects each; bf16 on CUDA, fp32 elsewhere. The rows
    "detectron2" are its own ViT with decomposed positions and its own pyramid in the same detector.

    Args:
        device: Where.
        tiny: Small models and pictures, to see that it runs.

    Returns:
        ``machine`` and ``rows``: ``case``, ``model``, median ``ms`` and ``spread``, ``img/s``,
        ``x detectron2``, ``peak_gib`` and ``first_s``.
    """
    batch, size = (1, 64) if tiny else (4, 1024)
    rows = []
    for title, prepare in (
        (f"backbone and pyramid, forward + backward, batch {batch}", _backbone_step),
        (f"training step, batch {batch}", _training_step),
        ("inference, batch 1", _inference),
    ):
        number = 1 if prepare is _inference else batch
        for name, model in _models(device, size, tiny).items():
            row = {"case": title, "model": name}
            step = prepare(model, number, size, device)
            row |= measure_step(step, device, *((2, 1) if tiny else ()))
            row["img/s"] = number / row["ms"] * 1e3
            theirs = rows[-1]["img/s"] if name != "detectron2" else row["img/s"]
            rows.append(row | {"x detectron2": row["img/s"] / theirs})
            del model, step
    return {"machine": describe_machine(device), "rows": rows}


def _models(device: torch.device, size: int, tiny: bool):
    """One after the other, so that the memory of one is free before the next."""
    name = "custom/mask_rcnn_lomar_vit_tiny.py" if tiny else "coco/mask_rcnn_lomar_vit_b_25ep.py"
    ours = load_config(CONFIGS / name, []).model
    ours.backbone.square_pad = size
    net = ours.backbone.net
    net.img_size = size
    theirs = copy.deepcopy(ours)
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
    models = {"detectron2": theirs, "lomar_det": ours}
    return _Lazy(
        {name: lambda cfg=cfg: instantiate(cfg).to(device) for name, cfg in models.items()}
    )


class _Lazy:
    """Items that are made when they are reached."""

    def __init__(self, makers: dict[str, Callable[[], nn.Module]]):
        self.makers = makers

    def items(self):
        for name, make in self.makers.items():
            torch.manual_seed(0)
            yield name, make()


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
    pictures = [_picture(size, device, seed) for seed in range(batch)]

    def step() -> None:
        optimizer.zero_grad()
        with EventStorage(), _autocast(device):
            losses = model(pictures)
        sum(losses.values()).backward()
        optimizer.step()

    return step


def _inference(model: nn.Module, batch: int, size: int, device: torch.device):
    model.eval()
    pictures = [_picture(size, device, seed) for seed in range(batch)]

    @torch.no_grad()
    def step() -> None:
        with _autocast(device):
            model(pictures)

    return step


def _picture(size: int, device: torch.device, seed: int) -> dict:
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
