"""LoMaR, ViT-L/16, 224x224, 4 windows, relative positions, 1600 epochs.

1024 wide, 24 blocks, 16 heads. A pass of 64 images is a cautious choice: the memory has not been
measured.
"""

from ..common.models.vit import VIT_L
from ..common.pretrain import data, model, train

model.update(VIT_L)
train.max_batch_per_gpu = 64
train.output_dir = "output/pretrain/lomar_vit_l_224_1600ep"
