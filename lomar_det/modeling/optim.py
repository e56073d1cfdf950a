"""Parameter groups of ViTDet: layer-wise learning rate decay, and what gets no weight decay."""

from functools import partial

from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

NO_WEIGHT_DECAY = ("pos_embed", "lookup_table_weight")


def layer_decay_params(
    model: nn.Module,
    base_lr: float,
    weight_decay: float = 0.1,
    lr_decay_rate: float = 0.7,
    num_layers: int = 12,
    weight_decay_norm: float | None = 0.0,
) -> list[dict]:
    """Parameter groups for AdamW, as in ViTDet's recipe plus the iRPE tables.

    The tables decay with their block's learning rate and get no weight decay, like ViTDet's
    absolute positions. For LazyConfig: ``optimizer = L(AdamW)(params=L(layer_decay_params)(...))``;
    the trainer fills in ``model``.
    """
    return get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        lr_factor_func=partial(
            get_vit_lr_decay_rate, lr_decay_rate=lr_decay_rate, num_layers=num_layers
        ),
        overrides={name: {"weight_decay": 0.0} for name in NO_WEIGHT_DECAY},
    )
