"""What pretraining is worth to a detector of blood cells: random weights and three pretrainings.

The data are in the repository (`projects/blood_cells`), 292 images to train on, 72 to validate. All
pretrainings take four minutes of one core of an AMD EPYC: their epochs follow from the seconds of a
step of 16 images, 0.201 for asymmetric LoMaR, 0.492 for LoMaR, 0.319 for MAE, so that the same runs
come out on any machine, whatever else it does.

    python tools/ablate.py --config-file configs/ablation/detection_blood_cells_tiny.py
"""

from omegaconf import OmegaConf

from .detection_tiny import RELATIVE, budget, downstream, pretrain, run

DATA = "projects/blood_cells/data"

ARMS = {
    "random": {"pretrain": None},
    "lomar": {"budget": {"epochs": 27.1}},
    "lomar_asym": {"pretrain": {"config": "lomar_asym_vit_tiny"}, "budget": {"epochs": 66.4}},
    "mae": {
        "pretrain": {"config": "mae_vit_tiny", "overrides": RELATIVE},
        "budget": {"epochs": 41.8},
    },
}

pretrain.data = {"path": f"{DATA}/annotations_train.json", "image_root": f"{DATA}/images"}
for split in ("train", "val"):
    downstream.data[split] = {
        "annotations": f"{DATA}/annotations_{split}.json",
        "images": f"{DATA}/images",
    }
# The settings of configs/custom, chosen by detection_small_sets_tiny.py.
downstream.overrides = [
    "train.epochs=null",
    "train.max_iter=1000",
    "model.roi_heads.batch_size_per_image=64",
    "train.precision=bf16",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
]
cells = OmegaConf.create(ARMS)
budget.update(epochs=1, minutes=None)
run.update(seeds=[0, 1, 2], title="Detection of blood cells by pretraining")
run.output_dir = "output/ablation/detection_blood_cells_tiny"
