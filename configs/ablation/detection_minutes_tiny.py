"""What more pretraining is worth to a detector: box AP after 4 and 16 minutes of it, in small.

The detector of `detection_zoomed_tiny.py`, from backbones that LoMaR and MAE pretrained for that
time; a dashed line for random weights, a point for MAE with ViTDet's positions.

    python tools/ablate.py --config-file configs/ablation/detection_minutes_tiny.py \
        downstream.data.train.annotations=train.json downstream.data.train.images=IMAGES \
        downstream.data.val.annotations=val.json downstream.data.val.images=IMAGES

Every run has a learning rate schedule of its own, down to zero at its end. Each cell says its
length and place, ``cells.X.budget.minutes`` and ``cells.X.x``; ``budget.minutes`` counts for none.
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
