"""Asymmetric LoMaR, ViT-S/16, 224x224, 4 windows, relative positions, 400 epochs.

Costs 2.2 GFLOP an image (forward), a quarter of LoMaR's.
"""

from ..common.models.vit import VIT_S
from ..common.pretrain_asym import data, model, train

model.update(VIT_S)
train.output_dir = "output/pretrain/lomar_asym_vit_s_224_400ep"
