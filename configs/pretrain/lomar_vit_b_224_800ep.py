"""LoMaR, ViT-B/16, 224x224, 4 windows, relative positions, 800 epochs.

Half of the paper's main recipe, with its shorter warm-up: 20 epochs.
"""

from ..common.pretrain import data, model, train

train.epochs, train.warmup_epochs = 800, 20
train.output_dir = "output/pretrain/lomar_vit_b_224_800ep"
