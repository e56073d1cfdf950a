"""Draws what LoMaR and MAE are trained on: `tools/visualize_data.py` for pretraining."""

import logging
from itertools import islice
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from lomar_det.config.lazy import as_list, require_sections
from lomar_det.data.image_files import make_folder
from lomar_det.data.stream import SeededDataset, StreamSampler
from lomar_det.layers import grid_size
from lomar_det.modeling.build import build_model

from ..data.native_scale import views_as_images
from ..data.sources import find_images
from ..models.lomar import LoMaR
from ..models.mae import MAE
from ..models.window_sampling import WindowSample, windows_from_noise
from .pretrain import list_samples, make_sample
from .settings import PretrainData, PretrainSettings

logger = logging.getLogger(__name__)


def visualize_pretraining_data(cfg: DictConfig, output: str | Path, num: int = 8) -> list[Path]:
    """Draws the first crops of a run, in the run's order; for LoMaR with windows and masks.

    Args:
        cfg: A LazyConfig of `configs/pretrain`, overrides applied.
        output: Folder for the drawings.
        num: Number of crops.

    Returns:
        The files written.

    Raises:
        UserError: there are no images, or a setting is wrong.
    """
    needed = "model.img_size", "data.path", "data.crop_scale", "train.seed"
    require_sections(cfg, "the config", "pretrain, configs/custom and configs/coco", *needed)
    data = PretrainData.read(cfg, "data")
    seed = PretrainSettings.read(cfg, "train").seed
    with torch.device("meta"):  # only its settings are needed, which the model checks
        model = build_model(cfg)
    paths = find_images(as_list(data.path), data.image_root)
    entries = list_samples(data, paths)
    samples = SeededDataset(entries, make_sample(data, model), seed)
    output = make_folder(output)
    written = []
    order = StreamSampler(len(entries), seed, permutation=entries.permutation)
    for position, index in islice(order, num):
        sample, failed = samples[position, index]
        for name, reason in failed:
            logger.warning("%s cannot be read (%s): another image is in its place", name, reason)
        images, noises = ([part] for part in sample[:2])
        if data.region_size is not None:
            images, noises = views_as_images(*(tensor[None] for tensor in sample[:2]))
        drawn = [_draw(model, *pair) for pair in zip(images, noises, strict=True)]
        name = "another" if failed else Path(str(entries[index])).stem
        written.append(output / f"{position:03d}_{name}.png")
        to_pil_image(torch.cat(drawn, dim=2)).save(written[-1])  # windows of an image in a row
    return written


def _draw(model: LoMaR | MAE, image: Tensor, noise: Tensor) -> Tensor:
    if not isinstance(model, LoMaR):
        return image
    k, p = model.window_size, model.patch_size
    windows = windows_from_noise(noise[None], grid_size(image.shape[1:], p), k, model.mask_ratio)
    return draw_windows(image, windows, p, k)


def draw_windows(image: Tensor, windows: WindowSample, patch_size: int, window_size: int) -> Tensor:
    """Frames the windows of an image and darkens their masked patches.

    Args:
        image: (3, H, W), uint8.
        windows: The windows of this image alone.
        patch_size: In pixels.
        window_size: In patches.
    """
    p, k = patch_size, window_size
    grid = image.shape[1] // p, image.shape[2] // p
    masked = torch.zeros(grid, dtype=torch.bool)
    masked.view(-1)[windows.patch_ids[windows.mask]] = True
    masked = masked.repeat_interleave(p, 0).repeat_interleave(p, 1)
    image = image.clone()
    image[:, : masked.shape[0], : masked.shape[1]][:, masked] //= 4
    corners = [divmod(int(ids[0]), grid[1]) for ids in windows.patch_ids]
    boxes = torch.tensor([[x * p, y * p, (x + k) * p - 1, (y + k) * p - 1] for y, x in corners])
    return draw_bounding_boxes(image, boxes, colors="red", width=2)
