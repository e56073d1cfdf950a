"""Mask R-CNN, ViT-B/16 pretrained by LoMaR at 224 (4 windows), COCO, 25 epochs at 1024x1024.

The paper's detection comparison, on ViTDet's recipe: batch 64, AdamW, learning rate 1e-4 with
layer-wise decay 0.7, steps at 8/9 and 26/27 of the run. 25 epochs x 118,000 images / 64 = 46,094
iterations, steps at 40,973 and 44,387. (COCO has 118,287 training images; ViTDet counts 118,000,
and its 100 epochs are 184,375 iterations. We count as it does.)

    train_net.py --config-file configs/coco/mask_rcnn_lomar_vit_b_25ep.py --num-gpus 8 \
        train.init_checkpoint=output/pretrain/lomar_vit_b_224_1600ep/backbone_final.pth
"""

from ..common.detection_data import data, dataloader
from ..common.detection_train import lr_multiplier, optimizer, train
from ..common.models.mask_rcnn_lomar_vit import model

model.backbone.square_pad = "${data.image_size}"
data.num_images = 118_000
train.epochs = 25
train.output_dir = "output/mask_rcnn_lomar_vit_b_25ep"
