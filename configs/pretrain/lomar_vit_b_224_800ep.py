"""LoMaR, ViT-B/16, 224x224, 4 windows, relative positions, 800 epochs.

Half of the paper's main recipe. Its warm-up is 5 % of the epochs, by the author's word.
"""

from ..common.pretrain import data, model, train

train.epochs, train.warmup_epochs = 800, 40
train.output_dir = "output/pretrain/lomar_vit_b_224_800ep"
