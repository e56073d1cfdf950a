"""The baseline: Mask R-CNN, ViT-B/16 pretrained by MAE, COCO, 25 epochs.

ViTDet as published: absolute positions from pretraining, resized, and decomposed relative ones,
which start at zero. The backbone computes exactly what detectron2's own ViT computes; schedule and
heads are those of the LoMaR rows.

    train.init_checkpoint=mae_pretrain_vit_base.pth
"""

from .mask_rcnn_lomar_vit_b_25ep import data, dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.update(rel_pos="decomposed", use_abs_pos=True, img_size="${data.image_size}")
train.output_dir = "output/mask_rcnn_mae_vit_b_25ep"
