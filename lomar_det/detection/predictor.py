"""A trained detector as a function: an image in, its instances out."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.config import instantiate
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from omegaconf import DictConfig
from PIL import Image

from ..data.tiles import resolve_overlap
from ..engine.device import autocast, pick_device, resolve_precision
from ..errors import UserError
from .from_checkpoint import find_categories, load_detector, read_detector
from .tiling import TileDetector
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
        if not 0 <= confidence_threshold < 1:
            raise UserError(f"confidence threshold {confidence_threshold} is not between 0 and 1")
        if max_detections is not None and max_detections < 1:
            raise UserError(f"the maximum of detections, {max_detections}, must be above 0")
        cfg = config if isinstance(config, DictConfig) else load_any_config(config, [])
        cfg, found = read_detector(cfg, checkpoint)
        self.max_detections, self.tile_size = max_detections, tile_size
        resolve_overlap(tile_size, tile_overlap)  # before the weights are read
        self.device = pick_device(cfg.train.device)
        self.dtype = resolve_precision(cfg.train.precision, self.device)
        self.model = load_detector(cfg, found, self.device)
        num_classes = cfg.model.roi_heads.num_classes
        self.categories = find_categories(cfg, num_classes, found.meta.get("classes"), classes)
        self.image_size = cfg.data.image_size
        augmentations = instantiate(cfg.dataloader.test.mapper.augmentations)
        self._tiles = TileDetector(
            self.model,
            list(augmentations),
            self.image_size,
            tile_size,
            tile_overlap,
            batch_size,
            partial(autocast, self.device, self.dtype),
        )
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
        return self._tiles(image)[: self.max_detections]
