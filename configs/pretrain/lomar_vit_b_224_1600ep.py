"""LoMaR, ViT-B/16, 224x224, 4 windows, relative positions, 1600 epochs: the paper's main recipe.

Batch 4096: on 8 GPUs 512 images each; on one, split it with ``train.accumulation_steps``.
"""

from ..common.pretrain import data, model, train

train.output_dir = "output/pretrain/lomar_vit_b_224_1600ep"
