"""Pictures of what LoMaR and MAE are trained on."""

from itertools import islice
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from lomar_det.layers import to_pair
from lomar_det.stream import SeededDataset, StreamSampler

from .data import PretrainTransform, denormalize, find_images
from .windows import sample_windows


def visualize_pretraining_data(cfg: DictConfig, output: str | Path, num: int = 8) -> list[Path]:
    """Draws the first crops of a run, in its order; for LoMaR with windows and masks over them.

    The windows are such as training draws, not the very same ones: those depend on the step.

    Args:
        cfg: A LazyConfig of `configs/pretrain`, overrides applied.
        output: Folder for the pictures.
        num: How many.

    Returns:
        The files written.

    Raises:
        UserError: there are no pictures.
    """
    folders = cfg.data.path
    paths = find_images(list(folders) if OmegaConf.is_list(folders) else str(folders))
    transform = PretrainTransform(to_pair(cfg.model.img_size), cfg.data.crop_scale, cfg.data.flip)
    crops = SeededDataset(paths, transform, cfg.train.seed)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for position, index in islice(StreamSampler(len(paths), cfg.train.seed), num):
        picture = (denormalize(crops[position, index]) * 255).byte()
        if "num_windows" in cfg.model:
            picture = draw_windows(picture, cfg.model, seed=position)
        written.append(output / f"{position:03d}_{paths[index].stem}.png")
        to_pil_image(picture).save(written[-1])
    return written


def draw_windows(image: Tensor, model: DictConfig, seed: int = 0) -> Tensor:
    """Random windows framed, their masked patches darkened.

    Args:
        image: (3, H, W), uint8.
        model: ``patch_size``, ``window_size``, ``num_windows`` and ``mask_ratio`` of a LoMaR.
        seed: Picks windows and masks.
    """
    p, k = model.patch_size, model.window_size
    grid = image.shape[1] // p, image.shape[2] // p
    generator = torch.Generator().manual_seed(seed)
    sample = sample_windows(1, grid, k, model.num_windows, model.mask_ratio, generator=generator)
    masked = torch.zeros(grid, dtype=torch.bool)
    masked.view(-1)[sample.patch_ids[sample.mask]] = True
    masked = masked.repeat_interleave(p, 0).repeat_interleave(p, 1)
    image = image.clone()
    image[:, : masked.shape[0], : masked.shape[1]][:, masked] //= 4
    corners = [divmod(int(ids[0]), grid[1]) for ids in sample.patch_ids]
    boxes = torch.tensor([[x * p, y * p, (x + k) * p - 1, (y + k) * p - 1] for y, x in corners])
    return draw_bounding_boxes(image, boxes, colors="red", width=2)
