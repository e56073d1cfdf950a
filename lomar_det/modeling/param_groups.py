"""Parameter groups of ViTDet: layer-wise learning rate decay, and what gets no weight decay."""

import re
from collections.abc import Iterator, Sequence
from functools import partial

from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from ..errors import UserError


def layer_decay_params(
    model: nn.Module,
    base_lr: float,
    weight_decay: float = 0.1,
    lr_decay_rate: float = 0.7,
    num_layers: int = 12,
    weight_decay_norm: float | None = 0.0,
    decay_vectors: bool = True,
    no_weight_decay: Sequence[str] = ("pos_embed", "lookup_table_weight"),
) -> list[dict]:
    """Parameter groups for AdamW, as in ViTDet's recipe plus the iRPE tables.

    The tables decay with their block's learning rate and get no weight decay, like ViTDet's
    absolute positions. Frozen parameters are left out. For LazyConfig:
    ``optimizer = L(AdamW)(params=L(layer_decay_params)(...))``; the run fills in ``model``.

    Args:
        model: A detector; blocks are found by the names ``backbone...blocks.N``.
        base_lr: Learning rate of everything above the blocks.
        weight_decay: Weight decay of all parameters that the other arguments do not name.
        lr_decay_rate: Factor of the learning rate from each block to the one below it.
        num_layers: Number of blocks in the backbone.
        weight_decay_norm: Weight decay of torch's normalisation layers; None is ``weight_decay``.
            As in detectron2, the channel-first norms of pyramid and heads are not among them.
        decay_vectors: False switches weight decay off for vectors: biases and norms, as in timm.
        no_weight_decay: Names of further parameters without weight decay.

    Raises:
        UserError: ``num_layers`` is not the backbone's, or nothing is left to train.
    """
    blocks = [
        int(match[1])
        for name, _ in model.named_parameters()
        if (match := re.match(r"backbone\..*?\bblocks\.(\d+)\.", name))
    ]
    depth = max(blocks, default=-1) + 1
    if depth != num_layers:
        raise UserError(
            f"optimizer.params.num_layers={num_layers}, but the backbone has {depth} blocks for "
            "the learning rate to decay over; set it to model.backbone.net.depth"
        )
    groups = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        lr_factor_func=partial(
            get_vit_lr_decay_rate, lr_decay_rate=lr_decay_rate, num_layers=num_layers
        ),
        overrides={name: {"weight_decay": 0.0} for name in no_weight_decay},
    )
    if not groups:
        raise UserError("every parameter is frozen: nothing is left to train")
    return groups if decay_vectors else [part for g in groups for part in _without_vectors(g)]


def _without_vectors(group: dict) -> Iterator[dict]:
    """A group in two: vectors without weight decay, and the rest as it was."""
    vectors = [parameter for parameter in group["params"] if parameter.dim() <= 1]
    others = [parameter for parameter in group["params"] if parameter.dim() > 1]
    if vectors:
        yield group | {"params": vectors, "weight_decay": 0.0}
    if others:
        yield group | {"params": others}
