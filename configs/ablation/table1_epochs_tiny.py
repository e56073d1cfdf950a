"""`table1_tiny.py` after 30 and 90 epochs of pretraining, with relative positions.

Every run has a learning rate schedule of its own, down to zero at its end.
"""

from .table1_tiny import budget, cells, downstream, pretrain, run

del cells["mae_absolute"], cells["lomar_absolute"]
for name, line in {"lomar_relative": "LoMaR", "mae_relative": "MAE"}.items():
    cells[name].update(x=30, line=line, budget={"epochs": 30})
    cells[f"{name}_90"] = {**cells[name], "x": 90, "budget": {"epochs": 90}}
run.title = "Classification by epochs of pretraining"
run.x_label = "epochs of pretraining"
run.output_dir = "output/ablation/table1_epochs_tiny"
