"""`detection_zoomed_tiny.py` after 4 and 16 minutes of pretraining.

Every run has a learning rate schedule of its own, down to zero at its end.
"""

from .detection_zoomed_tiny import budget, cells, downstream, pretrain, run

LINES = {"lomar": "LoMaR", "mae_relative": "MAE", "mae": "MAE, ViTDet's positions"}
for name, line in LINES.items():
    cells[name].update(x=4, line=line, budget={"minutes": 4})
for name in ("lomar", "mae_relative"):
    cells[f"{name}_16"] = {**cells[name], "x": 16, "budget": {"minutes": 16}}
run.title = "Detection by minutes of pretraining"
run.x_label = "minutes of pretraining"
run.output_dir = "output/ablation/detection_minutes_tiny"
