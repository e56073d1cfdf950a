"""LoMaR, ViT-B/16, 384x384, 9 windows, relative positions, 1600 epochs.

The paper's high-resolution recipe: 9/4 of the tokens of 224 with 4 windows, whatever the image. MAE
takes 60.6 GFLOP an image (forward) at this size, and 4 windows (``model.num_windows=4``) 35.0.
"""

from ..common.pretrain import data, model, train

model.img_size = 384
model.num_windows = 9
train.max_batch_per_gpu = 64
train.output_dir = "output/pretrain/lomar_vit_b_384_1600ep"
