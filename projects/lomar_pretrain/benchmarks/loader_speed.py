"""How fast images reach the model."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from lomar_det.benchmarks import describe_machine
from lomar_det.data.stream import SeededDataset, stream_loader

from ..data.shard_writer import write_shards
from ..data.sources import ImageList, find_images
from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD, PretrainTransform, WithNoise

# Pixels of the shortest side. The smallest fifth of the crops is then enlarged to 224.
SHRUNK = 320
LOADER_COLUMNS = {
    "case": "",
    "img/s": ".0f",
    "img/s/core": ".0f",
    "x classic": ".2f",
    "cores": ".1f",
}


def benchmark_loader(num_workers: int, images_per_second: float = 0.0, tiny: bool = False) -> dict:
    """Times the loading of JPEGs: ours, and PIL with torchvision's classic transforms.

    The images are as large as COCO's; for the last row `tools/make_shards.py` has shrunk them.

    Args:
        num_workers: Processes that load; 0 loads in this one.
        images_per_second: What the step eats, to say how many cores keep it busy (``cores``).
        tiny: Few images, to see that it runs.
    """
    classic = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                224, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def open_classic(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(path) as image:
            return classic(image.convert("RGB")), torch.rand(4, 51)

    ours = WithNoise(PretrainTransform(224), (4, 51))
    rows: list[dict] = []
    with TemporaryDirectory() as folder:
        paths = draw_photos(Path(folder), 16 if tiny else 256)
        shards = write_shards(ImageList(list(map(str, paths))), folder, SHRUNK, quality=90)
        cases = {
            "640x480, PIL, classic transforms": (paths, open_classic),
            "640x480": (paths, ours),
            f"shards, shortest side {SHRUNK}": (find_images(shards), ours),
        }
        for title, (images, make) in cases.items():
            rate = loading_rate(images, make, num_workers, seconds=0.5 if tiny else 10)
            per_core = rate / max(1, num_workers)
            row = {"case": title, "img/s": rate, "img/s/core": per_core}
            row["x classic"] = rate / rows[0]["img/s"] if rows else 1.0
            row["cores"] = images_per_second / per_core if images_per_second else None
            rows.append(row)
    machine = describe_machine(torch.device("cpu")) | {"loader processes": str(num_workers)}
    return {"machine": machine, "rows": rows}


def draw_photos(folder: Path, number: int, size: tuple[int, int] = (640, 480)) -> list[Path]:
    """JPEGs whose files are as large as photos of that size: smooth shapes, some noise."""
    rng = np.random.default_rng(0)
    width, height = size
    paths = []
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = smooth + rng.normal(0, 12, (height, width, 1))
        paths.append(folder / f"{i:04d}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def loading_rate(images: Sequence, make, num_workers: int, seconds: float) -> float:
    """Samples a second that a loader makes of the images."""
    batch = min(64, len(images))
    dataset = SeededDataset(images, make, 0)
    loader = iter(stream_loader(dataset, batch, 0, num_workers=num_workers))
    for _ in range(max(2, 2 * num_workers)):  # until all workers have started
        next(loader)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(loader)
        count += batch
    return count / (time.perf_counter() - start)
