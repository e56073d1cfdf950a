"""`table1_tiny.py` with a linear probe instead of fine-tuning: what the frozen features hold.

    python tools/ablate.py --config-file configs/ablation/table1_linear_tiny.py \
        pretrain.data=IMAGES downstream.data=FOLDER

The pretraining runs are those of `table1_tiny.py`, made by whichever comes first.
"""

from .table1_tiny import ABSOLUTE, RELATIVE, budget, cells, downstream, pretrain, run

downstream.config = "linear_lomar_vit_tiny"
for settings in (downstream, *[cell.downstream for cell in cells.values() if "downstream" in cell]):
    # the probe has the encoder inside
    settings.overrides = [s.replace("model.", "model.encoder.") for s in settings.overrides]
downstream.overrides += [
    "train.epochs=20",
    "train.warmup_epochs=2",
    "train.total_batch_size=64",
    "train.base_lr=4e-3",
]
run.title = "LoMaR and MAE, relative and absolute positions: linear probe"
run.output_dir = "output/ablation/table1_linear_tiny"
run.pretrain_dir = "output/ablation/table1_tiny"
