"""Optimizer, schedule and run settings of ViTDet's recipe."""

import torch
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from lomar_det.engine import step_schedule
from lomar_det.modeling import layer_decay_params

from .run import run

optimizer = L(torch.optim.AdamW)(
    params=L(layer_decay_params)(
        # the trainer sets ``model``
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        lr_decay_rate=0.7,
        num_layers="${model.backbone.net.depth}",
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.1,
)

lr_multiplier = L(step_schedule)(
    max_iter="${train.max_iter}", warmup_iters=250, milestones=(8 / 9, 26 / 27)
)

train = OmegaConf.create(
    {
        **run,
        "output_dir": "output/detector",
        # a pretrained backbone or a whole detector; empty trains from random weights
        "init_checkpoint": "",
        # epochs decide the iterations, unless those are given
        "epochs": None,
        "max_iter": None,
        # the batch that optimizer.lr is meant for; another one is remarked upon in the log
        "lr_batch_size": 64,
        # 4 images of 1024x1024 took 13.3 GiB with ViT-B (docs/performance.md)
        "max_batch_per_gpu": 4,
        "checkpointer": {
            # iterations between checkpoints, of which the last few stay, ...
            "period": 5000,
            "max_to_keep": 3,
            # ... and between those that are never deleted; null for none
            "milestone_period": None,
            # model_best.pth holds the weights with the highest; segm/AP for masks, null for none
            "best_metric": "bbox/AP",
        },
        "eval_period": 5000,
    }
)
