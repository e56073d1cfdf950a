"""LoMaR, ViT-S/16, 224x224, 4 windows, relative positions, 1600 epochs.

384 wide, 12 blocks, 6 heads: half of ViT-B's width, for smaller budgets.
"""

from ..common.models.vit import VIT_S
from ..common.pretrain import data, model, train

model.update(VIT_S)
train.output_dir = "output/pretrain/lomar_vit_s_224_1600ep"
