"""Cascade Mask R-CNN, LoMaR ViT-B/16, on COCO-format data of your own: tighter boxes, more time."""

from ..common.models.cascade_rcnn import cascade
from .mask_rcnn_lomar_vit_b import data, dataloader, lr_multiplier, model, optimizer, train

cascade(model)
train.output_dir = "output/custom_cascade"
