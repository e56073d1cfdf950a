"""Mask R-CNN, ViT-B/16 pretrained by LoMaR with absolute positions, COCO, 25 epochs.

The ablation of the relative positions. The only positions are the sine-cosine ones of pretraining,
resized to the image and trained further. The checkpoint must come from LoMaR with ``abs_pos=True,
rel_pos=False`` at 224. For another size, set ``model.backbone.net.pretrain_img_size``.
"""

from .mask_rcnn_lomar_vit_b_25ep import data, dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.update(rel_pos="none", use_abs_pos=True)
train.output_dir = "output/mask_rcnn_lomar_abs_vit_b_25ep"
