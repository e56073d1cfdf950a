"""Mask R-CNN, ViT-S/16 pretrained by LoMaR, COCO, 25 epochs.

Neither in the paper nor in ViTDet: ViT-B's recipe, for small budgets.
"""

from ..common.models.vit import VIT_S
from .mask_rcnn_lomar_vit_b_25ep import data, dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.update(VIT_S)
train.output_dir = "output/mask_rcnn_lomar_vit_s_25ep"
