"""LoMaR, ViT-B/16, 224x224, 4 windows, relative positions, 400 epochs.

A quarter of the paper's main recipe, with its shorter warm-up: 10 epochs.
"""

from ..common.pretrain import data, model, train

train.epochs, train.warmup_epochs = 400, 10
train.output_dir = "output/pretrain/lomar_vit_b_224_400ep"
