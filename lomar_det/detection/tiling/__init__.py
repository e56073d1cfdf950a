"""Detecting in tiles of images of any size, every object once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ...data.images import find_regions, load_box, load_image
from ...data.tiles import Box, resolve_overlap, tile_boxes
from ...errors import UserError
from ..instance_masks import InstanceMasks
from .merging import group_detections


class TileDetector:
    """A model that detects tile by tile.

    A file that is read by region (`lomar_det.data.regions`) is never in memory as a whole: tiles
    are read while the detector works on those before.

    Args:
        model: A detectron2 `GeneralizedRCNN`, evaluating.
        augmentations: Those of evaluation, which resize a tile.
        image_size: The longest side that the model sees, in pixels.
        tile_size: Side of a tile in pixels of the image; 0 takes every image whole.
        tile_overlap: Pixels that neighbours share; None: a quarter of the side.
        batch_size: Tiles that go through the model at a time.
        cast: Makes the context, such as autocast, that the model runs in.

    Raises:
        UserError: impossible tiles.
    """

    def __init__(
        self,
        model: nn.Module,
        augmentations: list,
        image_size: int,
        tile_size: int = 0,
        tile_overlap: int | None = None,
        batch_size: int = 1,
        cast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        if batch_size < 1:
            raise UserError(f"the batch size, {batch_size}, must be above 0")
        self.model, self.image_size, self.cast = model, image_size, cast
        self._augment = T.AugmentationList(augmentations)
        self.tile_size, self.batch_size = tile_size, batch_size
        self.tile_overlap = resolve_overlap(tile_size, tile_overlap)

    def __call__(self, image: str | Path | Image.Image | np.ndarray) -> Instances:
        """The instances of an image, in its pixels, best score first, on the CPU."""
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
        return parts[0] if len(parts) == 1 else _merge(parts, tiles, pixels.size)

    @torch.inference_mode()
    def _detect(
        self, pixels: list[np.ndarray], tiles: list[Box], size: tuple[int, int]
    ) -> list[Instances]:
        """The instances of some tiles, in pixels of the image of ``size`` (width, height)."""
        inputs = [{"image": self._resize(part)} for part in pixels]
        with self.cast():
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
