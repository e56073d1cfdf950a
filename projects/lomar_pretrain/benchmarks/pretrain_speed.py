"""Timing pretraining: the step, and the loader that feeds it."""

import contextlib
import gc
from collections.abc import Callable

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from lomar_det.benchmarks import describe_machine, matrix_rate, measure_step, saved_megabytes
from lomar_det.benchmarks.cost import analyze
from lomar_det.engine.compilation import compile_blocks

from ..models.lomar import LoMaR
from ..models.mae import MAE
from .literal import UsualLoMaR

VIT_B = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12)
TINY = dict(patch_size=8, embed_dim=48, depth=2, num_heads=2)
ASYMMETRIC = dict(decoder_depth=1, decoder_embed_dim=256, decoder_num_heads=8)
TINY_DECODER = dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
# title: (model, its settings, batch, how it trains)
CASES = {
    "usual code, LoMaR 224, 4 windows": (UsualLoMaR, dict(img_size=224), 256, "usual"),
    "LoMaR 224, 4 windows, not compiled": (LoMaR, dict(img_size=224), 256, "eager"),
    "LoMaR 224, 4 windows": (LoMaR, dict(img_size=224), 256, "compiled"),
    "LoMaR 448, 4 windows": (LoMaR, dict(img_size=448), 256, "compiled"),
    "LoMaR 896, 4 windows": (LoMaR, dict(img_size=896), 256, "compiled"),
    "asymmetric LoMaR 224, 4 windows": (LoMaR, dict(img_size=224) | ASYMMETRIC, 256, "compiled"),
    "asymmetric LoMaR 448, 4 windows": (LoMaR, dict(img_size=448) | ASYMMETRIC, 256, "compiled"),
    "asymmetric LoMaR 896, 4 windows": (LoMaR, dict(img_size=896) | ASYMMETRIC, 256, "compiled"),
    "MAE 224": (MAE, dict(img_size=224), 256, "compiled"),
    "MAE 448": (MAE, dict(img_size=448), 64, "compiled"),
    "MAE 896": (MAE, dict(img_size=896), 16, "compiled"),
}
CPU_SHARE = 64  # a CPU's batches are that much smaller
STEP_COLUMNS = {
    "case": "",
    "batch": "d",
    "ms": ".1f",
    "spread": ".1f",
    "img/s": ".1f",
    "x usual": ".2f",
    "TFLOP/s": ".2f",
    "of ceiling": ".0%",
    "peak_gib": ".1f",
    "saved MB/img": ".0f",
    "first_s": ".1f",
}


def benchmark_pretrain(device: torch.device, tiny: bool = False) -> dict:
    """Times a training step of ViT-B/16 on random images that are on the device already.

    Forward, backward and AdamW. "usual": the whole image embedded, gathered N x N bias, fp16 with
    loss scaling; the others in bf16 with a fused optimizer, as `tools/pretrain.py` runs them, with
    ``train.compile`` where it says so. On a CPU everything is fp32, nothing is compiled and batches
    are small.

    Args:
        device: Where.
        tiny: Small models and images, to see that it runs.

    Returns:
        ``machine``, with ``ceiling`` in TFLOP/s of a large matrix product in the same run, and
        ``rows``: median ``ms`` and its ``spread`` (quartiles), ``img/s``, ``x usual``, ``TFLOP/s``
        of the model's own operations (three times the forward pass), ``of ceiling``,
        ``first_s``, the seconds of the first step, with compilation, and ``peak_gib`` or, on a
        CPU, ``saved MB/img``, what the backward pass needs of an image.
    """
    cuda = device.type == "cuda"
    ceiling = matrix_rate(device, torch.bfloat16 if cuda else torch.float32, 256 if tiny else 8192)
    rows: list[dict] = []
    for title, (kind, settings, batch, how) in CASES.items():
        if tiny:
            settings, batch = settings | {"img_size": settings["img_size"] // 4}, 4
        elif not cuda:
            batch = max(1, batch // CPU_SHARE)
        torch.manual_seed(0)
        backend = {"attention_backend": "eager" if how == "usual" else "auto"}
        settings = settings | backend | (TINY if tiny else VIT_B)
        if tiny and (kind is MAE or "decoder_depth" in settings):
            settings |= TINY_DECODER
        with torch.device("meta"):
            shapes = kind(**settings)
        flops = 3 * analyze(shapes, *shapes.img_size)["total"].flops * batch
        model = kind(**settings)
        step = _make_step(model.to(device), batch, how, device)
        repeats = (2, 1) if tiny else () if cuda else (5, 1)
        row = {"case": title, "batch": batch} | measure_step(step, device, *repeats)
        row["img/s"] = batch / row["ms"] * 1e3
        if not cuda:
            row["saved MB/img"] = saved_megabytes(step, model) / batch
        row["x usual"] = row["img/s"] / rows[0]["img/s"] if rows else 1.0
        row["TFLOP/s"] = flops / row["ms"] / 1e9
        row["of ceiling"] = row["TFLOP/s"] / ceiling
        rows.append(row)
        del model, step
        gc.collect()  # a compiled model is freed by nothing else, and the next row would count it
    machine = describe_machine(device) | {"ceiling": f"{ceiling:.3g} TFLOP/s"}
    return {"machine": machine, "rows": rows}


def _make_step(model: nn.Module, batch: int, how: str, device: torch.device) -> Callable[[], None]:
    cuda = device.type == "cuda"
    images = torch.randn(batch, 3, *model.img_size, device=device)
    dtype = torch.float16 if how == "usual" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=cuda and how == "usual")
    fused = cuda and how != "usual"
    groups = param_groups_weight_decay(model, 0.05)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=fused)
    if cuda and how == "compiled":
        compile_blocks(model)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype) if cuda else contextlib.nullcontext():
            loss = model(images).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step
