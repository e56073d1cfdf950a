"""Mask R-CNN, ViT-L/16 pretrained by LoMaR, COCO, 100 epochs.

ViTDet's settings for ViT-L: drop path 0.4, layer decay 0.8, and global attention in blocks 5, 11,
17, 23.
"""

from ..common.models.vit import VIT_L
from .mask_rcnn_lomar_vit_b_100ep import data, dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.update(VIT_L, drop_path_rate=0.4)
optimizer.params.lr_decay_rate = 0.8
train.output_dir = "output/mask_rcnn_lomar_vit_l_100ep"
