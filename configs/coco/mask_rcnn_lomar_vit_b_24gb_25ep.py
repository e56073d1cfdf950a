"""Mask R-CNN, ViT-B/16 pretrained by LoMaR, COCO, 25 epochs on one GPU of 24 GB.

Batch 64 in 16 passes of 4 images, in bf16, with activations recomputed in backward. 4 images
took 13.3 GiB on an H100 without recomputing (docs/performance.md); what this config takes has not
been measured yet. The loss is the mean of 16 losses of 4 images, each over its own
proposals, as 16 GPUs of 4 images would compute it.
"""

from .mask_rcnn_lomar_vit_b_25ep import data, dataloader, lr_multiplier, model, optimizer, train

model.backbone.net.use_act_checkpoint = True
train.accumulation_steps = 16
train.precision = "bf16"
train.output_dir = "output/mask_rcnn_lomar_vit_b_24gb_25ep"
