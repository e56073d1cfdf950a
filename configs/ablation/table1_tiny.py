"""The paper's Table 1 in small: LoMaR and MAE, each with relative and absolute positions.

Fine-tuned accuracy of the small ViT, each cell pretrained for the same number of epochs, and one
that starts from random weights. Data: a folder of pictures, and a folder of class folders (with
train/ and val/, else split by the seed).

    python tools/ablate.py --config-file configs/ablation/table1_tiny.py \
        pretrain.data=IMAGES downstream.data=FOLDER

The paper's size is ViT-B/16, 1600 epochs of ImageNet-1k, then 100 of fine-tuning. A copy of this
file with the recipes ``lomar_vit_b_224_1600ep``, ``mae_vit_b_224_1600ep`` and
``finetune_lomar_vit_b_224``, without the overrides that make things small, and

    python tools/ablate.py --config-file COPY --num-gpus 8 budget.epochs=1600 \
        pretrain.data=IMAGENET/train downstream.data=IMAGENET
"""

from omegaconf import OmegaConf

from ..common.ablation import budget, run

RELATIVE = ["model.rel_pos=True", "model.abs_pos=False"]
ABSOLUTE = ["model.rel_pos=False", "model.abs_pos=True"]

pretrain = OmegaConf.create(
    {
        "config": "lomar_vit_tiny",
        "data": "???",
        # of all cells; a cell's own come after them
        "overrides": ["train.picture_epochs=0"],
    }
)
downstream = OmegaConf.create(
    {
        "stage": "finetune",
        "config": "finetune_lomar_vit_tiny",
        "data": "???",
        "overrides": ["train.eval_epochs=0"],  # at the end alone
        "metric": "classification/top1",
    }
)
cells = OmegaConf.create(
    {
        "random": {"pretrain": None},
        "mae_absolute": {
            "pretrain": {"config": "mae_vit_tiny", "overrides": ABSOLUTE},
            "downstream": {"overrides": ABSOLUTE},
        },
        "mae_relative": {
            "pretrain": {"config": "mae_vit_tiny", "overrides": RELATIVE},
            "downstream": {"overrides": RELATIVE},
        },
        "lomar_absolute": {
            "pretrain": {"overrides": ABSOLUTE},
            "downstream": {"overrides": ABSOLUTE},
        },
        "lomar_relative": {
            "pretrain": {"overrides": RELATIVE},
            "downstream": {"overrides": RELATIVE},
        },
    }
)
budget.epochs = 100
run.title = "LoMaR and MAE, relative and absolute positions"
run.output_dir = "output/ablation/table1_tiny"
