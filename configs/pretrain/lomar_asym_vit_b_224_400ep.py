"""Asymmetric LoMaR, ViT-B/16, 224x224, 4 windows, relative positions, 400 epochs.

Costs 8.1 GFLOP an image (forward), where LoMaR takes 34.3 and MAE 19.1. Not the paper's method: see
`lomar_pretrain.models.lomar`.
"""

from ..common.pretrain_asym import data, model, train

train.output_dir = "output/pretrain/lomar_asym_vit_b_224_400ep"
