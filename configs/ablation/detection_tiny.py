"""What pretraining is worth to a detector, in small: random weights, LoMaR, MAE.

Box AP of the small Mask R-CNN after 800 steps; every pretraining takes the same time. ``mae`` has
ViTDet's positions, absolute and decomposed. The other rows are the same detector with iRPE, from
different weights. For data with masks: ``downstream.metric=[bbox/AP,segm/AP]``.

    python tools/ablate.py --config-file configs/ablation/detection_tiny.py \
        downstream.data.train.annotations=train.json downstream.data.train.images=IMAGES \
        downstream.data.val.annotations=val.json downstream.data.val.images=IMAGES
"""

from omegaconf import OmegaConf

from .table1_tiny import CPU, RELATIVE, budget, pretrain, run

VITDET = ["rel_pos=decomposed", "use_abs_pos=True", "img_size=256"]  # the size of its table
UNSET = {"annotations": "???", "images": "???"}

pretrain.data = {
    "path": "${downstream.data.train.annotations}",
    "image_root": "${downstream.data.train.images}",
}
pretrain.overrides = [
    "train.picture_epochs=0",
    "train.total_batch_size=16",  # many steps in few minutes
    "train.base_lr=8e-3",
    *CPU,
]
downstream = OmegaConf.create(
    {
        "stage": "detection",
        "config": "mask_rcnn_lomar_vit_tiny",
        "data": {"train": UNSET, "val": UNSET},
        "overrides": [
            "train.max_iter=800",
            "optimizer.lr=5e-4",
            "optimizer.params.lr_decay_rate=0.9",
            "lr_multiplier.warmup_iters=50",
            "train.clip_grad_norm=5.0",
            "model.roi_heads.batch_size_per_image=64",
            "train.precision=bf16",
            "dataloader.train.num_workers=0",
            "dataloader.test.num_workers=0",
        ],
        "metric": ["bbox/AP", "bbox/AP50"],
    }
)
cells = OmegaConf.create({"random": {"pretrain": None}, "lomar": {}})
cells.mae_relative = {"pretrain": {"config": "mae_vit_tiny", "overrides": RELATIVE}}
cells.mae = {
    "pretrain": {"config": "mae_vit_tiny"},
    "downstream": {"overrides": [f"model.backbone.net.{setting}" for setting in VITDET]},
}
budget.update(epochs=None, minutes=4)
run.update(seeds=[0, 1], title="Detection by pretraining")
run.output_dir = "output/ablation/detection_tiny"
