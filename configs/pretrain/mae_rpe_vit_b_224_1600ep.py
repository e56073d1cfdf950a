"""MAE with iRPE instead of absolute positions, ViT-B/16, 224x224, 1600 epochs.

The paper's variant of its baseline. The encoder's buckets come from the coordinates of the visible
patches; the decoder has iRPE on the whole grid. The backbone fits the same detector as LoMaR's.
"""

from ..common.pretrain_mae import data, model, train

model.rel_pos = True
model.abs_pos = False
train.output_dir = "output/pretrain/mae_rpe_vit_b_224_1600ep"
