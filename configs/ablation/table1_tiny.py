"""The paper's Table 1 in small: LoMaR and MAE, each with relative and absolute positions.

Fine-tuned accuracy of a very small ViT at 96x96, which a CPU can train. Data: a folder of images,
and a folder of class folders (with train/ and val/, else split by the seed).

    python tools/ablate.py --config-file configs/ablation/table1_tiny.py \
        pretrain.data=IMAGES downstream.data=FOLDER

For the paper's size, copy this file with ``lomar_vit_b_224_1600ep``, ``mae_vit_b_224_1600ep`` and
``finetune_lomar_vit_b_224``, leave out the overrides that make things small, and set
``budget.epochs`` to 1600.
"""

from omegaconf import OmegaConf

# 12x12 patches: windows of 7x7 overlap, but none covers the whole image.
SIZE = ["model.img_size=96", "model.patch_size=8", "model.embed_dim=128", "model.depth=4"]
SIZE += ["model.num_heads=4"]
# On a CPU, bf16 takes half the time of fp32 if the CPU has it, and worker processes only compete.
CPU = ["train.precision=bf16", "data.num_workers=0"]
RELATIVE = ["model.rel_pos=True", "model.abs_pos=False"]
ABSOLUTE = ["model.rel_pos=False", "model.abs_pos=True"]


def cell(config, positions):
    pretraining = {"config": config, "overrides": positions}
    return {"pretrain": pretraining, "downstream": {"overrides": positions}}


pretrain = OmegaConf.create(
    {
        "config": "lomar_vit_tiny",
        "data": "???",
        # Overrides of all cells; a cell's own overrides come after them.
        "overrides": [
            *SIZE,
            "train.picture_epochs=0",
            "train.total_batch_size=32",
            "train.base_lr=4e-3",
            *CPU,
        ],
    }
)
downstream = OmegaConf.create(
    {
        "stage": "finetune",  # or detection
        "config": "finetune_lomar_vit_tiny",
        "data": "???",
        "overrides": [
            *SIZE,
            "train.epochs=10",
            "train.warmup_epochs=1",
            "train.total_batch_size=16",  # many steps in few minutes
            "train.base_lr=8e-3",
            "train.layer_decay=null",  # random weights need their lower blocks trained, too
            "train.eval_epochs=0",  # only at the end
            *CPU,
        ],
        # One of the results or a [list, of, these]; it can be changed after all runs are done.
        "metric": "classification/top1",
    }
)
cells = OmegaConf.create(
    {
        "random": {"pretrain": None},
        "mae_absolute": cell("mae_vit_tiny", ABSOLUTE),
        "mae_relative": cell("mae_vit_tiny", RELATIVE),
        "lomar_absolute": cell("lomar_vit_tiny", ABSOLUTE),
        "lomar_relative": cell("lomar_vit_tiny", RELATIVE),
    }
)
# One of the two limits each pretraining, unless its cell has a budget of its own.
budget = OmegaConf.create({"epochs": 30, "minutes": None})
run = OmegaConf.create(
    {
        "seeds": [0, 1, 2],
        "output_dir": "output/ablation/table1_tiny",
        # The output_dir of another ablation, to share its pretraining; null: not shared.
        "pretrain_dir": None,
        "title": "LoMaR and MAE, relative and absolute positions",
        # null: the plot has bars. A label: it has a curve over ``x`` for each ``line`` of cells.
        "x_label": None,
    }
)
