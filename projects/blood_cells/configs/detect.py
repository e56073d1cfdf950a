"""A small detector of blood cells: some ninety seconds of one core."""

from ....configs.custom.mask_rcnn_lomar_vit_tiny import (
    data,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

DATA = "projects/blood_cells/data"

data.train = {"annotations": f"{DATA}/annotations_train.json", "images": f"{DATA}/images"}
data.val = {"annotations": f"{DATA}/annotations_val.json", "images": f"{DATA}/images"}
model.roi_heads.batch_size_per_image = 64
dataloader.train.num_workers = dataloader.test.num_workers = 0
train.epochs, train.max_iter = None, 400
train.precision = "bf16"
