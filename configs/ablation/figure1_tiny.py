"""The paper's Figure 1 in small: fine-tuned accuracy over LoMaR's windows per image.

As `table1_tiny.py`. All cells see the images equally often, so more windows take longer. For equal
time instead: ``budget.epochs=null budget.minutes=10``.
"""

from omegaconf import OmegaConf

from .table1_tiny import budget, downstream, pretrain, run

cells = OmegaConf.create({"random": {"pretrain": None}})
for number in (1, 2, 4, 6):
    pretraining = {"overrides": [f"model.num_windows={number}"]}
    cells[f"windows_{number}"] = {"x": number, "pretrain": pretraining}
budget.epochs = 15
run.title = "LoMaR by windows per image"
run.x_label = "windows per image"
run.output_dir = "output/ablation/figure1_tiny"
