"""A small detector of tree crowns: some three minutes on two CPU cores."""

from ....configs.custom.mask_rcnn_lomar_vit_tiny import (
    data,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

# Most crowns measure 25 to 50 pixels: anchors of half the usual size.
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
dataloader.train.total_batch_size = 2
optimizer.lr = 4e-4
train.lr_batch_size = 2
train.epochs = None
train.max_iter = 400
train.log_period = 20
