"""What pretraining is worth to a detector, in small: random weights, LoMaR, MAE.

Box AP and AP50 of the small Mask R-CNN on COCO-format data after 800 steps; where there are masks,
``downstream.metric=[bbox/AP,segm/AP]`` shows theirs, too. All pretrain for the same time.
``mae`` has ViTDet's positions, absolute and decomposed; the other rows are one and the same
detector, with iRPE, from other weights. ``cells.mae=null`` leaves a row out.

    python tools/ablate.py --config-file configs/ablation/detection_tiny.py \
        downstream.data.train.annotations=train.json downstream.data.train.images=IMAGES \
        downstream.data.val.annotations=val.json downstream.data.val.images=IMAGES

Pretraining sees the images of the training file, or those of ``pretrain.data=IMAGES``.
The paper's size is ViT-B/16, 1600 epochs of ImageNet-1k, then 25 of COCO. A copy of this file with
the recipes ``lomar_vit_b_224_1600ep``, ``mae_vit_b_224_1600ep`` and
``configs/coco/mask_rcnn_lomar_vit_b_25ep.py``, without the overrides that make things small, and

    python tools/ablate.py --config-file COPY --num-gpus 8 budget.minutes=null \
        budget.epochs=1600 pretrain.data=IMAGENET/train downstream.data=null
"""

from omegaconf import OmegaConf

from ..common.ablation import budget, run
from .table1_tiny import CPU, RELATIVE

# with rel_pos=none instead, absolute positions alone: what LoMaR with absolute positions needs
VITDET = [
    "model.backbone.net.rel_pos=decomposed",
    "model.backbone.net.use_abs_pos=True",
    "model.backbone.net.img_size=256",  # data.image_size lays out the tables
]
UNSET = {"annotations": "???", "images": "???"}

pretrain = OmegaConf.create(
    {
        "config": "lomar_vit_tiny",
        "data": {
            "path": "${downstream.data.train.annotations}",
            "image_root": "${downstream.data.train.images}",
        },
        "overrides": [
            "train.picture_epochs=0",
            "train.total_batch_size=16",  # many steps in few minutes
            "train.base_lr=8e-3",
            *CPU,
        ],
    }
)
downstream = OmegaConf.create(
    {
        "stage": "detection",
        "config": "mask_rcnn_lomar_vit_tiny",
        "data": {"train": UNSET, "val": UNSET},
        "overrides": [
            "train.max_iter=800",
            "dataloader.train.total_batch_size=2",
            "train.lr_batch_size=2",
            "model.roi_heads.batch_size_per_image=64",
            "train.precision=bf16",
            "dataloader.train.num_workers=0",
            "dataloader.test.num_workers=0",
        ],
        "metric": ["bbox/AP", "bbox/AP50"],
    }
)
cells = OmegaConf.create(
    {
        "random": {"pretrain": None},
        "lomar": {},
        "mae_relative": {"pretrain": {"config": "mae_vit_tiny", "overrides": RELATIVE}},
        "mae": {
            "pretrain": {"config": "mae_vit_tiny"},
            "downstream": {"overrides": VITDET},
        },
    }
)
budget.minutes = 4
run.seeds = [0, 1]
run.title = "Detection by pretraining"
run.output_dir = "output/ablation/detection_tiny"
