"""What pretraining is worth to a detector, in small: random weights, LoMaR, MAE.

Box AP of the small Mask R-CNN on COCO-format data, MAE's row with ViTDet's positions: absolute and
decomposed.

    python tools/ablate.py --config-file configs/ablation/detection_tiny.py pretrain.data=IMAGES \
        downstream.data.train.annotations=train.json downstream.data.train.images=IMAGES \
        downstream.data.val.annotations=val.json downstream.data.val.images=IMAGES

The paper's size is ViT-B/16, 1600 epochs of ImageNet-1k, then 25 of COCO. A copy of this file with
the recipes ``lomar_vit_b_224_1600ep``, ``mae_vit_b_224_1600ep`` and
``configs/coco/mask_rcnn_lomar_vit_b_25ep.py``, without the overrides that make things small, and

    python tools/ablate.py --config-file COPY --num-gpus 8 budget.epochs=1600 \
        pretrain.data=IMAGENET/train downstream.data=null
"""

from omegaconf import OmegaConf

from ..common.ablation import budget, run

# with rel_pos=none instead, absolute positions alone: what LoMaR with absolute positions needs
VITDET = [
    "model.backbone.net.rel_pos=decomposed",
    "model.backbone.net.use_abs_pos=True",
    "model.backbone.net.img_size=256",  # data.image_size lays out the tables
]
UNSET = {"annotations": "???", "images": "???"}

pretrain = OmegaConf.create(
    {"config": "lomar_vit_tiny", "data": "???", "overrides": ["train.picture_epochs=0"]}
)
downstream = OmegaConf.create(
    {
        "stage": "detection",
        "config": "mask_rcnn_lomar_vit_tiny",
        "data": {"train": UNSET, "val": UNSET},
        "overrides": [],
        "metric": "bbox/AP",
    }
)
cells = OmegaConf.create(
    {
        "random": {"pretrain": None},
        "lomar": {},
        "mae": {
            "pretrain": {"config": "mae_vit_tiny"},
            "downstream": {"overrides": VITDET},
        },
    }
)
budget.epochs = 100
run.title = "Detection by pretraining"
run.output_dir = "output/ablation/detection_tiny"
