"""LoMaR, ViT-B/16, 224x224, 4 windows, relative positions, 1600 epochs: the paper's main recipe.

Costs 35.0 GFLOP an image (forward), as 4 windows do at any size. The number of GPUs must divide the
batch of 4096; each takes its share in passes of at most ``train.max_batch_per_gpu`` images.
"""

from ..common.pretrain import data, model, train

train.output_dir = "output/pretrain/lomar_vit_b_224_1600ep"
