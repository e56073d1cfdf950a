"""Optimizer, schedule and run settings of ViTDet's recipe."""

import torch
from detectron2.config import LazyCall as L

from lomar_det.config.settings import DetectionSettings
from lomar_det.engine import step_schedule
from lomar_det.modeling import layer_decay_params

optimizer = L(torch.optim.AdamW)(
    params=L(layer_decay_params)(
        # The run sets ``model``.
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

# Every setting, its default and what it means: docs/settings.md. 4 images of 1024x1024 in a pass
# took 13.3 GiB with ViT-B (docs/performance.md).
train = DetectionSettings.defaults(output_dir="output/detector")
