"""Loads weights into a model: all or nothing, with a report on every tensor."""

import logging
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..layers import (
    IRPE,
    NUM_BUCKETS,
    NUM_SPATIAL_BUCKETS,
    Attention,
    init_vit_weights,
    resize_pos_embed,
)
from ..modeling import LoMaRViT
from .rename import USUAL_NUM_HEADS, Checkpoint, architecture_of, read_checkpoint

logger = logging.getLogger(__name__)

MIN_LOADED = 0.95  # share of the encoder's tensors that must be in the file

# Why a model may have no place for a tensor: pattern -> reason.
_NO_PLACE = {
    r"cls_token$": "the model has no class token",
    r"(mask_token|encoder_pred|decoder)": "pretraining only",
    r"(fc_)?norm\.": "the model takes its features before this norm",
    r"(head|head_dist|pre_logits|attn_pool)\.": "classification only",
}
_PATCH_SIZE_REMEDY = "; or resize its kernels by tools/convert_checkpoint.py --patch-size {}"


@dataclass
class LoadReport:
    """What happened to every tensor.

    Attributes:
        source: The file.
        loaded: Names in the file of the tensors that the model took, adapted ones included.
        adapted: Name in the file -> what was changed.
        dropped: Name in the file -> why the tensor was not used.
        initialised: Name in the model -> why the file did not fill the tensor.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"Weights from {self.source}: {len(self.loaded)} tensors loaded"]
        for title in ("adapted", "dropped", "initialised"):
            lines += by_reason(title, getattr(self, title))
        return "\n".join(lines)


def by_reason(title: str, tensors: dict[str, str]) -> list[str]:
    """One line for each reason, with the first few names."""
    lines = []
    for reason in sorted(set(tensors.values())):
        names = [name for name, why in tensors.items() if why == reason]
        lines.append(f"  {title}: {len(names)} ({reason}): {_shorten(names)}")
    return lines


def _shorten(names: list[str], limit: int = 4) -> str:
    rest = f", ... {names[-1]}" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def load_weights(model: nn.Module, path: str | Path | Checkpoint, ema: bool = False) -> LoadReport:
    """Loads a checkpoint into a detector or a backbone, and reports every tensor.

    A detector's checkpoint fills every part of the model that has the same names and shapes. Any
    other checkpoint fills only the `LoMaRViT` inside the model.

    Args:
        model: A `LoMaRViT`, or any module that contains one.
        path: ``.pth``, ``.safetensors`` or ``.pkl``: our files, LoMaR's, MAE's, timm's, and
            detectron2's ViTDet models; or what `read_checkpoint` found in one.
        ema: Take the averaged weights in the file instead of the model's.

    Raises:
        UserError: the file is unreadable; its encoder is of another architecture or cannot be
            represented; or it holds less than 95 % of the encoder's tensors. The model is then
            unchanged.
    """
    prefix, encoder = find_encoder(model)
    found = path if isinstance(path, Checkpoint) else read_checkpoint(path, ema)
    state, report = _fit_encoder(found, encoder, f"model.{prefix}")
    state = {prefix + name: value for name, value in state.items()}
    own = model.state_dict()
    for name, value in found.outside.items():
        reason = _mismatch(value, own.get(name))
        if reason is None:
            state[name] = value
            report.loaded.append(found.names[name])
        else:
            report.dropped[found.names[name]] = reason
    is_detector = any(not name.startswith(prefix) for name in state)
    for name in own:
        if name not in state:
            outside = not is_detector and not name.startswith(prefix)
            report.initialised[name] = "outside the encoder" if outside else "not in the file"
    model.load_state_dict(state, strict=False)
    logger.info("%s", report)
    return report


def load_encoder_weights(encoder: nn.Module, path: str | Path, ema: bool = False) -> LoadReport:
    """Loads a checkpoint into a plain encoder: `LoMaRViT`, or a model of pretraining.

    Other tensors that file and model share (a pretraining head, a classifier) are loaded as well.

    Args:
        encoder: A module with the official LoMaR names: ``patch_embed``, ``blocks``, ...
        path, ema: See `load_weights`.

    Raises:
        UserError: as in `load_weights`.
    """
    found = read_checkpoint(path, ema)
    state, report = _fit_encoder(found, encoder, "model.")
    own = encoder.state_dict()
    report.initialised |= {name: "not in the file" for name in own if name not in state}
    report.dropped |= {found.names[name]: "outside the encoder" for name in found.outside}
    encoder.load_state_dict(state, strict=False)
    logger.info("%s", report)
    return report


def reinit_blocks(encoder: nn.Module, number: int) -> None:
    """Gives the upper blocks of an encoder the weights of a new one.

    Args:
        encoder: A module with ``blocks``.
        number: How many of them, from the last one down.

    Raises:
        UserError: it has fewer.
    """
    depth = len(encoder.blocks)
    if number > depth:
        raise UserError(f"train.reinit_blocks={number}, but the encoder has {depth} blocks")
    for module in encoder.blocks[depth - number :].modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, IRPE):
            nn.init.zeros_(module.lookup_table_weight)
        elif isinstance(module, Attention) and module.rel_pos == "decomposed":
            nn.init.zeros_(module.rel_pos_h)
            nn.init.zeros_(module.rel_pos_w)
        init_vit_weights(module)
    if number:
        logger.info("The upper %d of %d blocks start from random weights", number, depth)


def find_encoder(model: nn.Module) -> tuple[str, LoMaRViT]:
    """The prefix of a `LoMaRViT`'s tensors in a model (empty if it is the model), and the ViT.

    Raises:
        UserError: there is no `LoMaRViT`.
    """
    for name, module in model.named_modules():
        if isinstance(module, LoMaRViT):
            return (name + "." if name else ""), module
    raise UserError("the model has no LoMaRViT backbone to load weights into")


def _fit_encoder(
    found: Checkpoint, encoder: nn.Module, where: str
) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors that the encoder can take, by its names; ``where`` is its section, for errors."""
    own = encoder.state_dict()
    _check_architecture(found, encoder, own, where)
    report = LoadReport(found.path, adapted=dict(found.adapted), dropped=dict(found.dropped))
    state = {}
    for name, value in found.tensors.items():
        source = found.names.get(name)  # None if the file did not have this tensor
        value, change = _resize(name, value, own.get(name), found, encoder)
        reason = _mismatch(value, own.get(name), name)
        if name == "mask_token" and _has_decoder(own) != _has_decoder(found.tensors):
            reason = "of another method of pretraining"
        if reason is None:
            state[name] = value
            report.loaded += [source] if source else []
            if change:
                changes = filter(None, [found.adapted.get(source), change])
                report.adapted[source] = ", ".join(changes)
        elif source:
            report.dropped[source] = reason
    _check_arrived(found, state, own)
    return state, report


def _has_decoder(names) -> bool:
    return "decoder_embed.weight" in names


def _mismatch(value: Tensor, own: Tensor | None, name: str = "") -> str | None:
    """Why a tensor cannot be used, or None."""
    if own is None:
        reasons = (why for pattern, why in _NO_PLACE.items() if re.match(pattern, name))
        return next(reasons, "unknown to the model")
    if value.shape != own.shape:
        return f"shape {tuple(value.shape)} is not the model's {tuple(own.shape)}"
    return None


def _check_architecture(found: Checkpoint, encoder: nn.Module, own: dict, where: str) -> None:
    theirs, ours = found.architecture, architecture_of(own)
    ours["num_heads"] = encoder.blocks[0].attn.num_heads
    keys = ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")
    differing = [key for key in keys if theirs[key] not in (None, ours[key])]
    if differing:
        raise UserError(
            f"{found.path} does not fit the model: "
            + "; ".join(
                f"{key} is {theirs[key]} in the file, {ours[key]} here" for key in differing
            )
            + ". Use another checkpoint, or build the model to match: "
            + " ".join(f"{where}{key}={theirs[key]}" for key in differing)
            + (_PATCH_SIZE_REMEDY.format(ours["patch_size"]) if "patch_size" in differing else "")
        )
    usual = USUAL_NUM_HEADS.get(ours["embed_dim"], ours["num_heads"])
    if theirs["num_heads"] is None and ours["num_heads"] != usual:
        logger.warning(
            "%s does not give num_heads: %d heads are usual for embed_dim %d, the model has %d",
            found.path,
            usual,
            ours["embed_dim"],
            ours["num_heads"],
        )
    # Decomposed tables start at zero in every recipe: MAE and timm files have none.
    starts_at_zero = (theirs["rel_pos"], ours["rel_pos"]) == ("none", "decomposed")
    same_rel_pos = theirs["rel_pos"] == ours["rel_pos"] or starts_at_zero
    if not same_rel_pos or theirs["abs_pos"] != ours["abs_pos"]:
        raise UserError(
            f"{found.path} was trained {_positions(theirs)}, but the model is built "
            f"{_positions(ours)}: {_remedy(theirs, encoder, where)}"
        )


def _positions(architecture: dict) -> str:
    names = {"irpe": "with iRPE", "decomposed": "with decomposed relative positions"}
    absolute = "with" if architecture["abs_pos"] else "without"
    rel_pos = names.get(architecture["rel_pos"], "without iRPE")
    return f"{rel_pos} and {absolute} absolute positions"


def _remedy(theirs: dict, encoder: nn.Module, where: str) -> str:
    rel_pos, abs_pos = theirs["rel_pos"], theirs["abs_pos"]
    if isinstance(encoder, LoMaRViT):
        choice = "decomposed (or none)" if rel_pos == "none" else rel_pos
        return f"set {where}rel_pos={choice} and {where}use_abs_pos={abs_pos}"
    if rel_pos == "decomposed":
        return "only a detector can have decomposed positions"
    return f"set {where}rel_pos={rel_pos == 'irpe'} and {where}abs_pos={abs_pos}"


def _resize(
    name: str, value: Tensor, own: Tensor | None, found: Checkpoint, encoder: nn.Module
) -> tuple[Tensor, str | None]:
    """A position table resized to the model's, and what was changed."""
    if own is None or value.shape == own.shape:
        return value, None
    if name.endswith("lookup_table_weight"):
        rows = value.shape[-1], own.shape[-1]
        if rows == (NUM_BUCKETS, NUM_SPATIAL_BUCKETS):
            return value[..., :NUM_SPATIAL_BUCKETS], None  # the last row is the class token's
        if rows == (NUM_SPATIAL_BUCKETS, NUM_BUCKETS):
            return F.pad(value, (0, 1)), "zeros for the class token added"
    elif name.endswith(("rel_pos_h", "rel_pos_w")):
        # as detectron2 does at run time
        table = F.interpolate(value.float().T[None], size=len(own), mode="linear")[0].T
        return table, f"interpolated from {len(value)} to {len(own)} distances"
    elif name == "pos_embed" and found.grid[0] == found.grid[1]:
        grid = getattr(encoder, "grid", None) or (math.isqrt(own.shape[1] - 1),) * 2
        table = torch.cat([value[:, :1].float(), resize_pos_embed(value.float(), grid)], dim=1)
        return table, "bicubic from {}x{} to {}x{} patches".format(*found.grid, *grid)
    return value, None


def _check_arrived(found: Checkpoint, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """A head for other classes may be dropped, a part of the encoder may not."""
    parts = ("patch_embed.", "blocks.", "pos_embed")
    for name, value in found.tensors.items():
        reason = _mismatch(value, own.get(name))
        if name.startswith(parts) and name not in state:
            raise UserError(f"{found.path} does not fit the model: {found.names[name]}: {reason}")
    # Decomposed tables start at zero in every recipe.
    wanted = [n for n in own if n.startswith(parts) and not n.endswith(("rel_pos_h", "rel_pos_w"))]
    missing = [name for name in wanted if name not in state]
    if len(missing) > (1 - MIN_LOADED) * len(wanted):
        raise UserError(
            f"{found.path} does not fill the encoder: it holds {len(wanted) - len(missing)} of "
            f"{len(wanted)} tensors, the first missing one is {missing[0]}; is the file complete?"
        )
