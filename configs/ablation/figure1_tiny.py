"""The paper's Figure 1 in small: LoMaR's accuracy over 1, 2, 4 and 6 windows per image.

Fine-tuned accuracy of the very small ViT of `table1_tiny.py`, and a dashed line for one that starts
from random weights.

    python tools/ablate.py --config-file configs/ablation/figure1_tiny.py \
        pretrain.data=IMAGES downstream.data=FOLDER

All cells see the same images as often; with more windows each takes longer. For the same time
instead: ``budget.epochs=null budget.minutes=10``. For the paper's size see `table1_tiny.py`: the
recipe ``lomar_vit_b_224_400ep`` and ``finetune_lomar_vit_b_224``.
"""

from omegaconf import OmegaConf

from .table1_tiny import budget, downstream, pretrain, run

cells = OmegaConf.create({"random": {"pretrain": None}})
for windows in (1, 2, 4, 6):
    cells[f"windows_{windows}"] = {
        "x": windows,
        "pretrain": {"overrides": [f"model.num_windows={windows}"]},
    }
run.title = "LoMaR by windows per image"
budget.epochs = 15
run.x_label = "windows per image"
run.output_dir = "output/ablation/figure1_tiny"
