"""The paper's Table 1 in small: LoMaR and MAE, each with relative and absolute positions.

Fine-tuned accuracy of a very small ViT at 96x96 (a CPU can pay for it), each cell pretrained for
the same number of epochs, and one that starts from random weights. Data: a folder of images, and
a folder of class folders (with train/ and val/, else split by the seed).

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

# 12x12 patches: windows of 7x7 overlap, but none is the whole image
SIZE = ["img_size=96", "patch_size=8", "embed_dim=128", "depth=4", "num_heads=4"]
# what a CPU likes: half the time of fp32 where it knows bf16, and no processes that take turns
CPU = ["train.precision=bf16", "data.num_workers=0"]
RELATIVE = ["model.rel_pos=True", "model.abs_pos=False"]
ABSOLUTE = ["model.rel_pos=False", "model.abs_pos=True"]

pretrain = OmegaConf.create(
    {
        "config": "lomar_vit_tiny",
        "data": "???",
        # of all cells; a cell's own come after them
        "overrides": [
            *[f"model.{setting}" for setting in SIZE],
            "train.picture_epochs=0",
            "train.total_batch_size=32",
            "train.base_lr=4e-3",
            *CPU,
        ],
    }
)
downstream = OmegaConf.create(
    {
        "stage": "finetune",
        "config": "finetune_lomar_vit_tiny",
        "data": "???",
        "overrides": [
            *[f"model.{setting}" for setting in SIZE],
            "train.epochs=10",
            "train.warmup_epochs=1",
            "train.total_batch_size=16",  # many steps in few minutes
            "train.base_lr=8e-3",
            "train.layer_decay=null",  # random weights need their lower blocks trained, too
            "train.eval_epochs=0",  # at the end alone
            *CPU,
        ],
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
budget.epochs = 30
run.title = "LoMaR and MAE, relative and absolute positions"
run.output_dir = "output/ablation/table1_tiny"
