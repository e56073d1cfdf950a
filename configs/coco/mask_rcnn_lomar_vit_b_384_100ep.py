"""Mask R-CNN, ViT-B/16 pretrained by LoMaR at 384 (9 windows), COCO, 100 epochs.

train.init_checkpoint=output/pretrain/lomar_vit_b_384_1600ep/backbone_final.pth
"""

from .mask_rcnn_lomar_vit_b_100ep import data, dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "output/mask_rcnn_lomar_vit_b_384_100ep"
