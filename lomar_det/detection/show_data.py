"""Draws what a detector is trained on."""

from itertools import islice
from pathlib import Path

import numpy as np
from detectron2.structures import BitMasks, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..config.lazy import instantiate_section
from ..data.classes import dataset_classes
from ..data.configure import configure_data
from ..data.image_files import make_folder
from .draw import distinct_color, draw_objects


def visualize_detection_data(
    cfg: DictConfig, output: str | Path, num: int = 8, annotations_only: bool = False
) -> list[Path]:
    """Draws the first training samples, with boxes, masks and class names.

    Args:
        cfg: A LazyConfig of `configs/custom` or `configs/coco`, overrides applied.
        output: Folder for the drawings.
        num: Number of samples.
        annotations_only: Draw whole images with their annotations, in the order of the file.
            Otherwise draw what the training loader yields under ``train.seed``.

    Returns:
        The files written.

    Raises:
        UserError: see `configure_data`.
    """
    facts = configure_data(cfg)
    cfg = cfg if facts is None else facts.apply(cfg)
    names = dataset_classes(cfg.dataloader.train.dataset)
    if annotations_only:
        plain = {"augmentations": [], "recompute_boxes": False}
        mapper = instantiate_section(cfg, "dataloader.train.mapper", **plain)
        samples = map(mapper, instantiate_section(cfg, "dataloader.train.dataset"))
    else:
        one = {"total_batch_size": 1, "num_workers": 0, "seed": cfg.train.seed}
        loader = instantiate_section(cfg, "dataloader.train", **one)
        samples = (batch[0] for batch in loader)
    output = make_folder(output)
    paths = []
    for number, sample in enumerate(islice(samples, num)):
        paths.append(output / f"{number:03d}_{Path(sample['file_name']).stem}.png")
        draw_sample(sample["image"], sample["instances"], names).save(paths[-1])
    return paths


def draw_sample(image: Tensor, instances: Instances, names: list[str]) -> Image.Image:
    """An image with the ground truth of a sample drawn over it.

    Args:
        image: (3, H, W), uint8.
        instances: With ``gt_boxes``, ``gt_classes`` and, maybe, ``gt_masks``.
        names: Class names; if empty, class numbers are drawn.
    """
    classes = instances.gt_classes.tolist()
    masks = None
    if instances.has("gt_masks"):
        masks = [(0, 0, mask) for mask in _bitmaps(instances.gt_masks, image.shape[1:])]
    return draw_objects(
        to_pil_image(image),
        instances.gt_boxes.tensor.tolist(),
        [names[c] if names else str(c) for c in classes],
        [distinct_color(c) for c in classes],
        masks,
    )


def _bitmaps(masks: BitMasks | PolygonMasks, size: tuple[int, int]) -> np.ndarray:
    """(N, H, W), bool."""
    if isinstance(masks, BitMasks):
        return masks.tensor.bool().numpy()
    bitmaps = [polygons_to_bitmask(polygons, *size) for polygons in masks.polygons]
    return np.array(bitmaps, dtype=bool).reshape(-1, *size)
