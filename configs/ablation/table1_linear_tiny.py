"""`table1_tiny.py` with a linear probe instead of fine-tuning; both share their pretraining."""

from .table1_tiny import CPU, SIZE, budget, cells, downstream, pretrain, run

downstream.config = "linear_lomar_vit_tiny"
downstream.overrides = [*SIZE, "train.eval_epochs=0", *CPU]
for section in [downstream, *(cell.downstream for cell in cells.values() if "downstream" in cell)]:
    # The encoder is a part of the probe.
    section.overrides = [s.replace("model.", "model.encoder.") for s in section.overrides]
run.title = "LoMaR and MAE, relative and absolute positions: linear probe"
run.output_dir, run.pretrain_dir = "output/ablation/table1_linear_tiny", run.output_dir
