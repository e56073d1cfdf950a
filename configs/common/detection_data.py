"""Loaders with large-scale jitter (LSJ) at ``data.image_size``, on COCO by its registered names.

The environment variable ``DETECTRON2_DATASETS`` names COCO's folder, as everywhere in detectron2.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from omegaconf import OmegaConf

from lomar_det.config.settings import NamedData
from lomar_det.data import RGBDatasetMapper, Tiles, build_train_loader
from lomar_det.detection.evaluation import CocoEvaluator

# Every setting, its default and what it means: docs/settings.md.
data = NamedData.defaults()

dataloader = OmegaConf.create()

dataloader.train = L(build_train_loader)(
    dataset=L(get_detection_dataset_dicts)(
        names="coco_2017_train", filter_empty="${data.filter_empty}"
    ),
    mapper=L(RGBDatasetMapper)(
        is_train=True,
        augmentations=[
            L(T.ResizeScale)(
                min_scale="${data.min_scale}",
                max_scale="${data.max_scale}",
                target_height="${data.image_size}",
                target_width="${data.image_size}",
            ),
            L(T.FixedSizeCrop)(crop_size=["${data.image_size}", "${data.image_size}"], pad=False),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="polygon",
        # After a crop, boxes are computed from the masks.
        recompute_boxes=True,
    ),
    tiles=L(Tiles)(
        size="${data.tile_size}",
        overlap="${data.tile_overlap}",
        min_visible="${data.min_visible}",
        empty="${data.empty_tiles}",
    ),
    total_batch_size=64,
    num_workers=8,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(RGBDatasetMapper)(
        is_train=False,
        augmentations=[
            L(T.ResizeShortestEdge)(
                short_edge_length="${data.image_size}", max_size="${data.image_size}"
            ),
        ],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(CocoEvaluator)(
    dataset_name="${..test.dataset.names}", backend="${data.evaluator}", max_dets_per_image=None
)
