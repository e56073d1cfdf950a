"""MAE, ViT-B/16, 224x224, absolute positions, 1600 epochs: the paper's baseline.

Costs 19.4 GFLOP an image (forward); 60.6 at 384 and 85.5 at 448, where LoMaR's 4 windows stay at
35.0. The next stage needs ``model.backbone.net.rel_pos=decomposed`` (or none) and
``model.backbone.net.use_abs_pos=True``.
"""

from ..common.pretrain_mae import data, model, train

train.output_dir = "output/pretrain/mae_vit_b_224_1600ep"
