"""Cascade Mask R-CNN, ViT-B/16 pretrained by LoMaR, COCO, 100 epochs."""

from ..common.models.cascade_rcnn import cascade
from .mask_rcnn_lomar_vit_b_100ep import data, dataloader, lr_multiplier, model, optimizer, train

cascade(model)
train.output_dir = "output/cascade_mask_rcnn_lomar_vit_b_100ep"
