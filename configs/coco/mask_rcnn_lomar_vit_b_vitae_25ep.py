"""Mask R-CNN, ViT-B/16 pretrained by LoMaR, COCO, 25 epochs, with the ViTAE port's weight decay.

The paper follows both ViTDet and its port by ViTAE. The port gives no weight decay to biases, norms
and position tables. ViTDet's recipe in detectron2 gives weight decay to biases, to decomposed
tables and to the norms of pyramid and heads. All else is the same.
"""

from .mask_rcnn_lomar_vit_b_25ep import data, dataloader, lr_multiplier, model, optimizer, train

optimizer.params.decay_vectors = False
optimizer.params.no_weight_decay = ["pos_embed", "lookup_table_weight", "rel_pos_h", "rel_pos_w"]
train.output_dir = "output/mask_rcnn_lomar_vit_b_vitae_25ep"
