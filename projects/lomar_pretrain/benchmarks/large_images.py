"""How fast LoMaR's windows come out of images that do not fit into memory."""

import multiprocessing
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from lomar_det.benchmarks import describe_machine
from lomar_det.data.regions import Regions
from lomar_det.errors import UserError

from ..data.native_scale import Part, Place, ViewsAtScale
from ..models.lomar import LoMaR
from .loader_speed import loading_rate

REGION = 1792
LARGE_COLUMNS = {
    "case": "",
    "samples/s": ".0f",
    "x region": ".1f",
    "x small": ".2f",
    "MB of the file": ".0f",
    "MB of a loader": ".0f",
}


class _WholeRegions(ViewsAtScale):
    """Decodes the region, and cuts the windows from it: what every other loader has to do."""

    def reads_singly(self, place: Place, regions: Regions) -> bool:
        return False


class _WithMemory:
    """Notes the most memory that a process has for itself, not counting what it shares."""

    def __init__(self, make):
        self.make, self.peak = make, multiprocessing.Value("d", 0.0)
        self._count = 0

    def __call__(self, part: Part):
        sample, self._count = self.make(part), self._count + 1
        if self._count % 50 != 1:  # to look takes as long as to read a window
            return sample
        text = Path("/proc/self/smaps_rollup").read_text()
        own = [int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")]
        self.peak.value = max(self.peak.value, sum(own) / 1024)
        return sample


def benchmark_large(num_workers: int, tiny: bool = False) -> dict:
    """Times the reading of four windows from regions of 1792 pixels, singly and from the region.

    The images are JPEG-compressed tiled TIFFs of noise on smooth shapes, of 16 and 1600 megapixels.

    Args:
        num_workers: Processes that load; 0 loads in this one.
        tiny: Small images, to see that it runs.

    Raises:
        UserError: rasterio is not installed.
    """
    with torch.device("meta"):
        model = LoMaR(img_size=224, num_windows=4)
    rows: list[dict] = []
    with TemporaryDirectory() as folder:
        for side in (2048, 4352) if tiny else (4096, 40_960):
            path = write_tiled(Path(folder) / f"{side}.tif", side)
            parts = [Part(path, number) for number in range(4 if tiny else 256)]
            by_region = None
            for title, views in (("the region", _WholeRegions), ("windows", ViewsAtScale)):
                make = _WithMemory(views(model, REGION, max_empty=1.0))
                rate = loading_rate(parts, make, num_workers, seconds=0.5 if tiny else 10)
                by_region = by_region or rate
                small = next((r["samples/s"] for r in rows if title in r["case"]), rate)
                rows.append(
                    {
                        "case": f"{side} x {side}, {title} decoded",
                        "samples/s": rate,
                        "x region": rate / by_region,
                        "x small": rate / small,
                        "MB of the file": path.stat().st_size / 1e6,
                        "MB of a loader": make.peak.value,
                    }
                )
    machine = describe_machine(torch.device("cpu")) | {"loader processes": str(num_workers)}
    return {"machine": machine, "rows": rows}


def write_tiled(path: Path, side: int) -> Path:
    """A JPEG-compressed tiled BigTIFF of ``side`` pixels, from a few different blocks of 1024."""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
        from rasterio.windows import Window
    except ImportError:
        raise UserError("large images need rasterio: pip install 'lomar-det[large]'") from None
    from PIL import Image

    rng = np.random.default_rng(0)
    blocks = []
    for _ in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((1024, 1024), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 12, (1024, 1024, 1)).astype(np.float32)
        blocks.append(noisy.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "yes"}
    layout |= {"compress": "jpeg", "photometric": "ycbcr", "jpeg_quality": 85}
    size = {"width": side, "height": side, "count": 3, "dtype": "uint8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        file = rasterio.open(path, "w", "GTiff", **size, **layout)
    with file:
        for top in range(0, side, 1024):
            for left in range(0, side, 1024):
                height, width = min(1024, side - top), min(1024, side - left)
                block = blocks[rng.integers(8)][:, :height, :width]
                file.write(block, window=Window(left, top, width, height))
    return path
