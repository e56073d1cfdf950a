"""Optimizer, schedule and run settings of ViTDet's recipe."""

import torch
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from lomar_det.engine import step_schedule
from lomar_det.modeling import layer_decay_params

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
        "output_dir": "output/detector",
        # a pretrained backbone or a whole detector; empty trains from random weights
        "init_checkpoint": "",
        "max_iter": 184375,
        # set, it decides max_iter (data of one's own only)
        "epochs": None,
        # auto: the GPU if there is one; cuda, cpu
        "device": "auto",
        # auto: bf16 on a GPU that has it, else fp32; evaluation runs in it, too
        "precision": "auto",
        # total_batch_size is split into this many forward passes
        "accumulation_steps": 1,
        "clip_grad_norm": None,
        # averaged weights (0.9999, say), which are then evaluated; null for none
        "ema_decay": None,
        # so many steps in a row with a non-finite loss or gradient are left out, then the run ends
        "max_skipped_steps": 10,
        "seed": 0,
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False},
        "checkpointer": {
            # iterations between checkpoints, of which the last few stay, ...
            "period": 5000,
            "max_to_keep": 3,
            # ... and between those that are never deleted; null for none
            "milestone_period": None,
            # model_best.pth holds the weights with the highest; segm/AP for masks, null for none
            "best_metric": "bbox/AP",
        },
        # delete another run's checkpoints in output_dir instead of refusing to start
        "overwrite": False,
        "eval_period": 5000,
        "log_period": 20,
        # Weights & Biases: {project: ..., name: ...}, arguments of wandb.init; null for none
        "wandb": None,
    }
)
