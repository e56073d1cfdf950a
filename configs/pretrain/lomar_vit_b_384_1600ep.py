"""LoMaR, ViT-B/16, 384x384, 9 windows, relative positions, 1600 epochs.

The paper's high-resolution recipe. 9 windows have 9/4 of the tokens of 4 windows, at any image
size. At this size MAE takes 60.6 GFLOP an image (forward), and 4 windows (``model.num_windows=4``)
take 35.0.
"""

from ..common.pretrain import data, model, train

model.img_size = 384
model.num_windows = 9
train.max_batch_per_gpu = 64
train.output_dir = "output/pretrain/lomar_vit_b_384_1600ep"
