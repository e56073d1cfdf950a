"""Asymmetric LoMaR, ViT-L/16, 224x224, 4 windows, relative positions, 400 epochs.

Costs a quarter of LoMaR's operations; its memory has not been measured.
"""

from ..common.models.vit import VIT_L
from ..common.pretrain_asym import data, model, train

model.update(VIT_L)
train.max_batch_per_gpu = 128
train.output_dir = "output/pretrain/lomar_asym_vit_l_224_400ep"
