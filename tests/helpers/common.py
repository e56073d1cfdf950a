"""Helpers of several tests: small settings, a set drawn on the fly, arguments of the tools."""

import argparse
import json
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks
from PIL import Image, ImageDraw

from lomar_det.engine import run_tool

ROOT = Path(__file__).resolve().parents[2]

# Small enough for a second or two on two cores; everything else comes from the config files.
TINY_PRETRAIN = [
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "model.img_size=64",
    "model.window_size=3",
    "model.num_windows=2",
    "train.total_batch_size=4",
    "train.warmup_epochs=1",
    "train.device=cpu",
    "train.log_period=1",
    "train.picture_epochs=0",
    "data.num_workers=0",
]
TINY_CLASSIFIER = [
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "model.img_size=32",
    "train.total_batch_size=8",
    "train.device=cpu",
    "train.log_period=1",
    "data.num_workers=0",
]
TINY_DETECTOR = [
    "model.backbone.net.embed_dim=32",
    "model.backbone.net.depth=2",
    "model.backbone.net.num_heads=2",
    "model.backbone.net.window_block_indexes=[0]",
    "model.backbone.net.window_size=3",
    "data.image_size=96",
    "train.device=cpu",
    "train.log_period=1",
    "train.epochs=null",
    "train.max_iter=4",
    "dataloader.train.num_workers=0",
    "dataloader.train.total_batch_size=2",
    "dataloader.test.num_workers=0",
]


def draw_instances(folder: Path, num_images: int = 6, seed: int = 0) -> dict:
    """Discs and squares on noise, landscape and portrait, as COCO polygons; returns the JSON."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "images": [],
        "annotations": [],
        # ids with a hole, not in order
        "categories": [{"id": 7, "name": "square"}, {"id": 3, "name": "disc"}],
    }
    for image_id in range(num_images):
        width, height = ((96, 64), (64, 96))[image_id % 2]
        image = Image.fromarray(rng.integers(0, 60, (height, width, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(1, 4))):
            r = int(rng.integers(8, 14))
            x, y = int(rng.integers(r, width - r)), int(rng.integers(r, height - r))
            if rng.random() < 0.5:
                category, corners = 3, 16
            else:
                category, corners = 7, 4
            angles = [2 * math.pi * i / corners + math.pi / 4 for i in range(corners)]
            polygon = [c for a in angles for c in (x + r * math.cos(a), y + r * math.sin(a))]
            draw.polygon(polygon, fill=(250, 120, 20) if category == 3 else (30, 200, 250))
            xs, ys = polygon[0::2], polygon[1::2]
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
        name = f"{image_id:03d}.png"
        image.save(folder / name)
        data["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
    return data


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes what is in a file, in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def drop_masks(data: dict) -> None:
    """Makes annotations in COCO's format ones of boxes only."""
    for annotation in data["annotations"]:
        del annotation["segmentation"]


def draw_colours(folder: Path, names: tuple[str, ...], number: int) -> Path:
    """Class folders that a model tells apart in seconds: noise, of one channel more in each."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[..., index] += 100
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def detector_batch(images: list[dict], annotations: list[dict], seed: int = 0) -> list[dict]:
    """What a mapper would give a detector for images of `draw_instances`, pixels at random."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for image in images:
        size = image["height"], image["width"]
        objects = [o for o in annotations if o["image_id"] == image["id"]]
        x, y, w, h = torch.tensor([o["bbox"] for o in objects]).T
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.stack([x, y, x + w, y + h], dim=1))
        instances.gt_classes = torch.tensor([o["category_id"] for o in objects])
        instances.gt_masks = PolygonMasks([o["segmentation"] for o in objects])
        pixels = torch.randint(0, 255, (3, *size), generator=generator).float()
        batch.append({"image": pixels, "instances": instances})
    return batch


def data_settings(annotations: Path, images: Path) -> list[str]:
    return [
        f"data.{split}.{key}={value}"
        for split in ("train", "val")
        for key, value in (("annotations", annotations), ("images", images))
    ]


def read_metrics(output: Path) -> list[dict]:
    """The lines of a run's ``metrics.json``."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def tool_args(config: str, *opts: str, resume: bool = False, eval_only: bool = False):
    """What a tool's parser would return."""
    return argparse.Namespace(
        config_file=str(ROOT / "configs" / config),
        opts=[str(opt) for opt in opts],
        resume=resume,
        eval_only=eval_only,
        num_gpus=1,
        num_machines=1,
    )


def tool_environment() -> dict[str, str]:
    """For subprocesses: the checkout's packages, also where they are not installed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "projects"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def run_two_processes(main, args: argparse.Namespace) -> None:
    """Runs a tool in two processes that torchrun's variables describe; both must end well."""
    # not forked: autograd's threads may be running, and a fork would not have them
    processes = torch.multiprocessing.start_processes
    processes(_as_torchrun_would, (free_port(), main, args), 2, start_method="spawn")


def _as_torchrun_would(rank: int, port: int, main, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    run_tool(main, args)
