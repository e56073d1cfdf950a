"""What more pretraining is worth to a classifier: accuracy after 30 and 90 epochs of it, in small.

The rows of `table1_tiny.py` with relative positions, and the same pretrained three times as long; a
dashed line for random weights.

    python tools/ablate.py --config-file configs/ablation/table1_epochs_tiny.py \
        pretrain.data=IMAGES downstream.data=FOLDER

Every run has a learning rate schedule of its own, down to zero at its end. Each cell says its
length and place, ``cells.X.budget.epochs`` and ``cells.X.x``; ``budget.epochs`` counts for none.
"""

from .table1_tiny import budget, cells, downstream, pretrain, run

del cells["mae_absolute"], cells["lomar_absolute"]
cells["mae_relative"] = cells.pop("mae_relative")  # LoMaR first, as in detection_minutes_tiny.py
for name, line in {"lomar_relative": "LoMaR", "mae_relative": "MAE"}.items():
    cells[name].update(x=30, line=line, budget={"epochs": 30})
    cells[f"{name}_90"] = {**cells[name], "x": 90, "budget": {"epochs": 90}}
run.title = "Classification by epochs of pretraining"
run.x_label = "epochs of pretraining"
run.output_dir = "output/ablation/table1_epochs_tiny"
