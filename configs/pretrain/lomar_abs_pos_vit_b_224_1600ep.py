"""LoMaR with absolute positions, ViT-B/16, 224x224, 4 windows, 1600 epochs.

The paper's variant with fixed sine-cosine positions instead of iRPE. The next stage then needs
``model.backbone.net.rel_pos=decomposed`` (or none) and ``model.backbone.net.use_abs_pos=True``.
"""

from ..common.pretrain import data, model, train

model.rel_pos = False
model.abs_pos = True
train.output_dir = "output/pretrain/lomar_abs_pos_vit_b_224_1600ep"
