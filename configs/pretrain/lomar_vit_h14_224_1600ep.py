"""LoMaR, ViT-H/14, 224x224, 4 windows, relative positions, 1600 epochs.

1280 wide, 32 blocks, 16 heads of 80. Patches of 14 pixels make a grid of 16x16 at 224. A pass of 16
images is a cautious choice: the memory has not been measured.
"""

from ..common.models.vit import VIT_H14
from ..common.pretrain import data, model, train

model.update(VIT_H14)
train.max_batch_per_gpu = 16
train.output_dir = "output/pretrain/lomar_vit_h14_224_1600ep"
