"""LoMaR, ViT-B/16, 448x448, 9 windows, relative positions, 1600 epochs.

As at 384, for larger images. Four windows are the cheap option: ``model.num_windows=4`` costs 35.0
GFLOP an image (forward), as at 224. MAE takes 85.5 at this size.
"""

from ..common.pretrain import data, model, train

model.img_size = 448
model.num_windows = 9
train.max_batch_per_gpu = 64
train.output_dir = "output/pretrain/lomar_vit_b_448_1600ep"
