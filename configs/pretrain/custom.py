"""Pretraining on a folder of your own: asymmetric LoMaR, ViT-B/16, 448x448, 8 windows.

    python tools/pretrain.py --config-file configs/pretrain/custom.py data.path=IMAGES \\
        train.max_minutes=120

Give the length in minutes or as ``train.epochs``. Opening images limits the speed of most sets, and
more windows of an opened image cost little then: the log says whether the loader or the model is
the limit, and which setting to turn. A step uses 256 images, at a learning rate for short runs.
The backbone is the one of ``configs/custom/mask_rcnn_lomar_vit_b.py``. Images of many megapixels
want ``data.region_size``, see docs/large-images.md.
"""

from ..common.pretrain_asym import data, model, train

model.img_size = 448
model.num_windows = 8
# Nearly all images of one's own look as natural when they are flipped.
data.flip = True
train.epochs, train.warmup_epochs = 200, 10
train.base_lr = 1e-3
train.total_batch_size = 256
train.max_batch_per_gpu = 256
train.checkpoint_epochs = 10
train.milestone_epochs = None
train.picture_epochs = 10
train.output_dir = "output/pretrain/custom"
