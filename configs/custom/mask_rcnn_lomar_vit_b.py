"""Mask R-CNN, LoMaR ViT-B/16, on COCO-format data of your own.

Give ``data.{train,val}.{annotations,images}``, here or on the command line. The classes, the mask
head (off for annotations of boxes only), detections per image and iterations follow from the files.
``data.train.annotations`` may be a list, with one folder for all files or one for each.
`python -m lomar_det.data.check ANNOTATIONS IMAGES` reports what is wrong with a set.
Batch 16 at 1024x1024 is one pass on four GPUs, and four passes on one GPU.
"""

from lomar_det.config.settings import OwnData

from ..common.detection_data import dataloader
from ..common.detection_train import lr_multiplier, optimizer, train
from ..common.models.mask_rcnn_lomar_vit import model

data = OwnData.defaults()

dataloader.train.total_batch_size = 16
optimizer.lr = 5e-5
train.lr_batch_size = 16
train.clip_grad_norm = 1.0
# A small set needs more passes than 50.
train.epochs, train.min_iter = 50, 2000
train.eval_period = 1000
train.checkpointer.period = 1000
train.output_dir = "output/custom"
