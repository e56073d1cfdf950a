"""Pictures of what a detector is trained on."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import BitMasks, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_segmentation_masks

from ..errors import UserError
from .classes import dataset_classes
from .setup import configure_data


def visualize_detection_data(
    cfg: DictConfig, output: str | Path, num: int = 8, annotations_only: bool = False
) -> list[Path]:
    """Draws the first training samples, with boxes, masks and class names.

    Args:
        cfg: A LazyConfig of `configs/custom` or `configs/coco`, overrides applied.
        output: Folder for the pictures.
        num: How many.
        annotations_only: Whole pictures with their annotations, in the order of the file; else what
            the training loader yields under ``train.seed``, in its order, after augmentation.

    Returns:
        The files written.

    Raises:
        UserError: see `configure_data`.
    """
    configure_data(cfg)
    loader = cfg.dataloader.train
    names = dataset_classes(loader.dataset)
    if annotations_only:
        loader.mapper.augmentations, loader.mapper.recompute_boxes = [], False
        mapper = instantiate(loader.mapper)
        samples = map(mapper, instantiate(loader.dataset))
    else:
        loader.total_batch_size, loader.num_workers, loader.seed = 1, 0, cfg.train.seed
        samples = (batch[0] for batch in instantiate(loader))
    output = make_folder(output)
    paths = []
    for number, sample in enumerate(islice(samples, num)):
        paths.append(output / f"{number:03d}_{Path(sample['file_name']).stem}.png")
        draw_sample(sample["image"], sample["instances"], names).save(paths[-1])
    return paths


def make_folder(path: str | Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error}") from None
    return Path(path)


def draw_sample(image: Tensor, instances: Instances, names: list[str]) -> Image.Image:
    """An image with the ground truth of a sample drawn over it.

    Args:
        image: (3, H, W), uint8.
        instances: With ``gt_boxes``, ``gt_classes`` and, maybe, ``gt_masks``.
        names: Of the classes; without them, numbers are shown.
    """
    classes = instances.gt_classes.tolist()
    colors = [class_color(c) for c in classes]
    if instances.has("gt_masks"):
        masks = _bitmaps(instances.gt_masks, image.shape[1:])
        for i in masks.flatten(1).sum(1).argsort(descending=True):  # small ones on top
            image = draw_segmentation_masks(image, masks[i], alpha=0.4, colors=[colors[i]])
    picture = to_pil_image(image)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(findfont("DejaVu Sans"), 12)
    for box, c, color in zip(instances.gt_boxes.tensor.tolist(), classes, colors, strict=True):
        label = names[c] if names else str(c)
        draw.rectangle(box, outline=color, width=2)
        draw.rectangle(draw.textbbox(box[:2], label, font=font), fill=color)
        draw.text(box[:2], label, fill="black", font=font)
    return picture


def class_color(number: int) -> tuple[int, int, int]:
    """RGB; neighbouring numbers get very different hues."""
    return tuple(int(255 * value) for value in colormaps["hsv"](number * 0.618 % 1)[:3])


def _bitmaps(masks: BitMasks | PolygonMasks, size: tuple[int, int]) -> Tensor:
    """(N, H, W), bool."""
    if isinstance(masks, BitMasks):
        return masks.tensor.bool()
    bitmaps = [polygons_to_bitmask(polygons, *size) for polygons in masks.polygons]
    return torch.from_numpy(np.array(bitmaps, dtype=bool).reshape(-1, *size))
