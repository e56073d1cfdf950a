"""`table1_tiny.py` with a linear probe instead of fine-tuning: what the frozen features hold.

    python tools/ablate.py --config-file configs/ablation/table1_linear_tiny.py \
        pretrain.data=IMAGES downstream.data=FOLDER

The pretraining runs are those of `table1_tiny.py`, made by whichever comes first.
"""

from .table1_tiny import ABSOLUTE, CPU, RELATIVE, SIZE, budget, cells, downstream, pretrain, run

downstream.config = "linear_lomar_vit_tiny"
downstream.overrides = [
    *[f"model.encoder.{setting}" for setting in SIZE],
    "train.eval_epochs=0",
    *CPU,
]
for cell in cells.values():
    if "downstream" in cell:  # the probe has the encoder inside
        settings = cell.downstream.overrides
        cell.downstream.overrides = [s.replace("model.", "model.encoder.") for s in settings]
run.title = "LoMaR and MAE, relative and absolute positions: linear probe"
run.output_dir = "output/ablation/table1_linear_tiny"
run.pretrain_dir = "output/ablation/table1_tiny"
