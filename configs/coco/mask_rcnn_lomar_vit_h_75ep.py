"""Mask R-CNN, ViT-H/16 pretrained by LoMaR, COCO, 75 epochs.

ViTDet's settings for ViT-H: drop path 0.5, layer decay 0.9, weight decay on norms, too, and global
attention in blocks 7, 15, 23, 31. 75 x 118,000 / 64 = 138,282 iterations.

Patch size 16, like ViTDet's: the pyramid's strides of 4 to 32 need it. Pretrain at 16
(``model.patch_size=16``); MAE's ViT-H has patches of 14, and ViTDet's authors resized its kernels.
"""

from ..common.models.vit import VIT_H
from .mask_rcnn_lomar_vit_b_100ep import data, dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.update(VIT_H, drop_path_rate=0.5)
optimizer.params.lr_decay_rate = 0.9
optimizer.params.weight_decay_norm = None
train.epochs = 75
train.output_dir = "output/mask_rcnn_lomar_vit_h_75ep"
