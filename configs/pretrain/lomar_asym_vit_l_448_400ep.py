"""Asymmetric LoMaR, ViT-L/16, 448x448, 8 windows, relative positions, 400 epochs.

Windows of 7x7 patches look at the image more closely than at 224. The cost is that of the windows:
twice that of four windows, whatever the size of the image.
"""

from ..common.models.vit import VIT_L
from ..common.pretrain_asym import data, model, train

model.update(VIT_L)
model.img_size = 448
model.num_windows = 8
train.max_batch_per_gpu = 256
train.max_batch_per_gpu = 64
train.output_dir = "output/pretrain/lomar_asym_vit_l_448_400ep"
