"""`table1_tiny.py` by the nearest neighbours of frozen features: seconds instead of minutes.

    python tools/ablate.py --config-file configs/ablation/table1_knn_tiny.py \
        pretrain.data=IMAGES downstream.data=FOLDER

The pretraining runs are those of `table1_tiny.py`, made by whichever comes first.
"""

from .table1_linear_tiny import budget, cells, downstream, pretrain, run

downstream.overrides += ["train.knn=20"]
downstream.metric = "classification/knn_top1"
run.title = "LoMaR and MAE, relative and absolute positions: nearest neighbours"
run.output_dir = "output/ablation/table1_knn_tiny"
