"""Mask R-CNN, LoMaR ViT-B/16, COCO, 25 epochs at 1024x1024.

The schedule of the paper's detection comparison on ViTDet's recipe. Its 100 epochs are 184,375
iterations at batch 64, so 25 are 46,094.

    train_net.py --config-file configs/coco/mask_rcnn_lomar_vit_b_25ep.py --num-gpus 8 \
        train.init_checkpoint=output/pretrain/backbone_final.pth
"""

from ..common.detection_data import data, dataloader
from ..common.detection_train import lr_multiplier, optimizer, train
from ..common.models.mask_rcnn_lomar_vit import model

model.backbone.square_pad = "${data.image_size}"
train.max_iter = round(184375 * 25 / 100)
train.output_dir = "output/mask_rcnn_lomar_vit_b_25ep"
