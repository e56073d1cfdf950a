"""Ablations of small runs, for the tests."""

import csv

TINY = ["embed_dim=32", "depth=2", "num_heads=2", "img_size=32"]
FINETUNE = [*(f"model.{setting}" for setting in TINY)]
FINETUNE += ["train.total_batch_size=8", "train.device=cpu", "data.num_workers=0"]
FINETUNE += ["train.epochs=2", "train.warmup_epochs=0", "train.base_lr=0.05"]

CONFIG = """
from omegaconf import OmegaConf
pretrain = OmegaConf.create(
    {"config": "lomar_vit_tiny", "data": "???", "overrides": %(pretrain)r}
)
downstream = OmegaConf.create({
    "stage": %(stage)r, "config": %(recipe)r, "data": "???", "overrides": %(downstream)r,
    "metric": %(metric)r,
})
cells = OmegaConf.create(%(cells)r)
budget = OmegaConf.create(
    {"epochs": None, "images": 20, "minutes": None, "calibration_steps": 2}
)
run = OmegaConf.create(
    {"seeds": [0], "output_dir": "", "pretrain_dir": None, "title": "Test", "x_label": None}
)
"""


def table(folder):
    """Rows of the table, without the seconds."""
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    return [{key: row[key] for key in row if "seconds" not in key} for row in rows]
