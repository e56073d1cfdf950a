"""`table1_tiny.py` with a linear probe instead of fine-tuning: what the frozen features hold.

    python tools/ablate.py --config-file configs/ablation/table1_linear_tiny.py \
        pretrain.data=IMAGES downstream.data=FOLDER
"""

from .table1_tiny import ABSOLUTE, RELATIVE, budget, cells, downstream, pretrain, run

downstream.config = "linear_lomar_vit_tiny"
for cell in cells.values():
    if "downstream" in cell:  # the probe has the encoder inside
        settings = cell.downstream.overrides
        cell.downstream.overrides = [s.replace("model.", "model.encoder.") for s in settings]
run.title = "LoMaR and MAE, relative and absolute positions: linear probe"
run.output_dir = "output/ablation/table1_linear_tiny"
