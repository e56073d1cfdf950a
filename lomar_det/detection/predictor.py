"""A trained detector as a function: an image in, its instances out."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import transforms as T
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..data.images import find_regions, load_box, load_image
from ..data.tiles import Box, check_tiling, tile_boxes
from ..engine.device import autocast, pick_device, resolve_precision
from ..errors import UserError
from .from_checkpoint import find_categories, load_detector, read_detector
from .instance_masks import InstanceMasks
from .merging import group_detections
from .yaml_route import load_any_config

logger = logging.getLogger(__name__)


class Predictor:
    """A detector that takes images of any size and format.

    Images are opened as in training and resized as in evaluation; results are in the image's own
    pixels. A file that is read by region (`lomar_det.data.regions`) is never in memory as a whole:
    tiles are read while the detector works on those before::

        predictor = Predictor("configs/custom/mask_rcnn_lomar_vit_b.py", "model_final.pth")
        instances = predictor("image.jpg")
        names = [predictor.categories[i]["name"] for i in instances.pred_classes]

    Args:
        config: A config file (.py or .yaml) or a loaded LazyConfig. The checkpoint decides the
            number of classes and whether there are masks.
        checkpoint: The whole detector; by default the config's ``train.init_checkpoint``.
        confidence_threshold: Detections must have a higher score.
        max_detections: Keep at most this many detections of an image, the best ones; by default
            the config's number, which then applies to each tile.
        tile_size: Cut larger images into tiles of this many pixels; 0 takes every image whole.
        tile_overlap: Pixels that neighbouring tiles share; by default a quarter of their size.
        classes: The ``file`` of `find_categories`.
        batch_size: Tiles that go through the detector at a time.

    Attributes:
        model: The detectron2 model.
        categories: For every class, COCO's ``id`` and ``name``.
        image_size: The longest side that the model sees, in pixels.

    Raises:
        UserError: a setting is wrong, or the checkpoint is not a detector that fits the config.
    """

    def __init__(
        self,
        config: DictConfig | str | Path,
        checkpoint: str | Path | None = None,
        confidence_threshold: float = 0.5,
        max_detections: int | None = None,
        tile_size: int = 0,
        tile_overlap: int | None = None,
        classes: str | Path | None = None,
        batch_size: int = 1,
    ):
        if batch_size < 1:
            raise UserError(f"the batch size, {batch_size}, must be above 0")
        if not 0 <= confidence_threshold < 1:
            raise UserError(f"confidence threshold {confidence_threshold} is not between 0 and 1")
        if max_detections is not None and max_detections < 1:
            raise UserError(f"the maximum of detections, {max_detections}, must be above 0")
        cfg = config if isinstance(config, DictConfig) else load_any_config(config, [])
        cfg, found = read_detector(cfg, checkpoint)
        self.max_detections = max_detections
        self.tile_size, self.batch_size = tile_size, batch_size
        self.tile_overlap = tile_size // 4 if tile_overlap is None else tile_overlap
        check_tiling(tile_size, self.tile_overlap)
        self.device = pick_device(cfg.train.device)
        self.dtype = resolve_precision(cfg.train.precision, self.device)
        self.model = load_detector(cfg, found, self.device)
        num_classes = cfg.model.roi_heads.num_classes
        self.categories = find_categories(cfg, num_classes, found.meta.get("classes"), classes)
        self.image_size = cfg.data.image_size
        augmentations = instantiate(cfg.dataloader.test.mapper.augmentations)
        self._augment = T.AugmentationList(list(augmentations))
        limit = max_detections or cfg.data.get("max_detections")
        for module in self.model.modules():
            if isinstance(module, FastRCNNOutputLayers):
                module.test_score_thresh = confidence_threshold
                if isinstance(limit, int):  # a config may say "auto"
                    module.test_topk_per_image = limit
        if isinstance(limit, int):
            topk = self.model.proposal_generator.post_nms_topk  # {True: training, False: test}
            topk[False] = max(topk[False], limit)

    def __call__(self, image: str | Path | Image.Image | np.ndarray) -> Instances:
        """Detects the instances of an image.

        Args:
            image: A file, a PIL image, or RGB pixels (height, width, 3) from 0 to 255.

        Returns:
            ``pred_boxes``, ``scores``, ``pred_classes`` and, if the detector has masks,
            ``pred_masks`` (`InstanceMasks`), best score first, on the CPU.

        Raises:
            UserError: the file is not an image.
        """
        pixels = _Pixels(image, self.image_size)
        tiles = list(tile_boxes(pixels.size, self.tile_size, self.tile_overlap))
        batches = [tiles[i : i + self.batch_size] for i in range(0, len(tiles), self.batch_size)]
        parts: list[Instances] = []
        with (
            ThreadPoolExecutor(1) as reader,
            tqdm(total=len(tiles), desc="tiles", leave=False, disable=len(tiles) < 10) as bar,
        ):
            ahead = reader.submit(pixels.read, batches[0])
            for number, batch in enumerate(batches, start=1):
                read = ahead.result()
                if number < len(batches):
                    ahead = reader.submit(pixels.read, batches[number])
                parts += self._detect(read, batch, pixels.size)
                bar.update(len(batch))
        instances = parts[0] if len(parts) == 1 else _merge(parts, tiles, pixels.size)
        return instances[: self.max_detections]

    @torch.inference_mode()
    def _detect(
        self, pixels: list[np.ndarray], tiles: list[Box], size: tuple[int, int]
    ) -> list[Instances]:
        """The instances of some tiles, in pixels of the image of ``size`` (width, height)."""
        inputs = [{"image": self._resize(part)} for part in pixels]
        with autocast(self.device, self.dtype):
            found = self.model.inference(inputs, do_postprocess=False)
        return [
            self._to_image(raw.to("cpu"), tile, size)
            for raw, tile in zip(found, tiles, strict=True)
        ]

    def _resize(self, pixels: np.ndarray) -> Tensor:
        height, width = pixels.shape[:2]
        augmented = T.AugInput(pixels)
        try:
            self._augment(augmented)
        except ValueError as error:  # the image is so narrow that a side becomes 0 pixels
            raise UserError(
                f"an image of {width} x {height} pixels cannot be resized to {self.image_size} "
                f"({error}); cut it into shorter pieces, or use tiles"
            ) from None
        return torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))

    def _to_image(self, raw: Instances, tile: Box, size: tuple[int, int]) -> Instances:
        """The instances of a tile as the model gives them, in pixels of the image."""
        height, width = tile[3] - tile[1], tile[2] - tile[0]
        boxes = Boxes(raw.pred_boxes.tensor.float())
        boxes.scale(width / raw.image_size[1], height / raw.image_size[0])
        boxes.clip((height, width))
        kept = boxes.nonempty()
        raw, boxes = raw[kept], boxes[kept].tensor
        instances = Instances(size[::-1])
        instances.pred_boxes = Boxes(boxes + boxes.new_tensor([*tile[:2], *tile[:2]]))
        instances.scores = raw.scores.float()
        instances.pred_classes = raw.pred_classes
        if self.model.roi_heads.mask_on:
            masks = raw.pred_masks[:, 0].float()
            instances.pred_masks = InstanceMasks.paste(masks, boxes, size[::-1], tile[:2])
        return instances


class _Pixels:
    """An image whose tiles are read one by one where its file allows it.

    Args:
        image: What `Predictor` takes.
        shown: Pixels of the longest side that the model sees of a tile.
    """

    def __init__(self, image: str | Path | Image.Image | np.ndarray, shown: int):
        is_file = isinstance(image, str | Path)
        regions = find_regions(image) if is_file else None
        # twice the pixels, so that resizing takes the last step; all of them in tiles of usual size
        self._enough = 2 * shown, 2 * shown
        self._source = Path(image) if regions else _open(image)
        self.size = regions.size if regions else self._source.size

    def read(self, tiles: list[Box]) -> list[np.ndarray]:
        """RGB pixels of tiles, each (height, width, 3)."""
        return [self._read(tile) for tile in tiles]

    def _read(self, tile: Box) -> np.ndarray:
        if not isinstance(self._source, Path):
            is_whole = tile == (0, 0, *self.size)
            return np.asarray(self._source if is_whole else self._source.crop(tile))
        left, top, right, bottom = tile
        return load_box(
            self._source, lambda *_: (top, left, bottom - top, right - left), self._enough
        )


def _open(image: str | Path | Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"pixels must be RGB (height, width, 3) of uint8, not {image.shape} of {image.dtype}"
        )
    return Image.fromarray(image)


def _merge(parts: list[Instances], tiles: list[Box], size: tuple[int, int]) -> Instances:
    """Joins the instances of all tiles, every object once; see `group_detections`."""
    tile_ids = torch.cat([torch.full((len(part),), i) for i, part in enumerate(parts)])
    every = Instances.cat(parts)
    boxes = every.pred_boxes.tensor
    groups = group_detections(
        boxes, every.scores, every.pred_classes, tile_ids, torch.tensor(tiles), size
    )
    best = torch.tensor([max(g, key=lambda i: every.scores[i]) for g in groups], dtype=torch.long)
    merged = every[best]
    for i, group in enumerate(groups):
        if len(group) > 1:
            merged.pred_boxes.tensor[i] = _hull(boxes[group])
    if merged.has("pred_masks"):
        masks = [every.pred_masks[g].union() if len(g) > 1 else every.pred_masks[g] for g in groups]
        merged.pred_masks = InstanceMasks.cat([every.pred_masks[:0], *masks])
    return merged


def _hull(boxes: Tensor) -> Tensor:
    """The smallest box around all of (N, 4)."""
    return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
