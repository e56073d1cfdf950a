"""Mask R-CNN, ViT-B/16 pretrained by LoMaR at 224, COCO, 100 epochs: ViTDet's full schedule.

184,375 iterations at batch 64, four times the cost of the 25 epochs.
"""

from .mask_rcnn_lomar_vit_b_25ep import data, dataloader, lr_multiplier, model, optimizer, train

train.epochs = 100
train.output_dir = "output/mask_rcnn_lomar_vit_b_100ep"
