"""Mask R-CNN, ViT-B/16 pretrained by LoMaR at 384 (9 windows), COCO, 25 epochs.

The paper's second row. The detector is exactly that of the 224 row, because iRPE tables do not
depend on the size of an image. Only the checkpoint differs:

    train.init_checkpoint=output/pretrain/lomar_vit_b_384_1600ep/backbone_final.pth
"""

from .mask_rcnn_lomar_vit_b_25ep import data, dataloader, lr_multiplier, model, optimizer, train

train.output_dir = "output/mask_rcnn_lomar_vit_b_384_25ep"
