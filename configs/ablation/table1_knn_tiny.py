"""`table1_tiny.py` by the nearest neighbours of frozen features, at 96x96: small enough for a CPU.

    python tools/ablate.py --config-file configs/ablation/table1_knn_tiny.py \
        pretrain.data=IMAGES downstream.data=FOLDER
"""

from .table1_linear_tiny import budget, cells, downstream, pretrain, run

# 12x12 patches: windows of 7x7 overlap, but none is the whole picture
SIZE = ["img_size=96", "patch_size=8", "embed_dim=128", "depth=4", "num_heads=4"]

pretrain.overrides += [f"model.{setting}" for setting in SIZE]
pretrain.overrides += ["train.total_batch_size=32", "train.base_lr=4e-3", "data.num_workers=0"]
downstream.overrides += [f"model.encoder.{setting}" for setting in SIZE]
downstream.overrides += ["train.knn=20", "data.num_workers=0"]
downstream.metric = "classification/knn_top1"
budget.epochs = 16
run.seeds = [0, 1]
run.title = "LoMaR and MAE, relative and absolute positions: nearest neighbours"
run.output_dir = "output/ablation/table1_knn_tiny"
