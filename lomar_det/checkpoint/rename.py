"""Finds the ViT encoder in a checkpoint, whoever wrote it, and gives it one set of names.

The names are those of the released LoMaR file; MAE, timm, DINO, DINOv2 and detectron2's ViT share
most of them. Tensors that our encoder cannot use are refused. Tensors that it can express in
another way are adapted.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .state_dicts import read_state_dict

REL_POS_TABLES = {
    "irpe": "attn.rpe_k.lookup_table_weight",
    "decomposed": "attn.rel_pos_h",
}
# Heads of the usual ViTs by embed_dim: tiny, small, base, large, huge.
USUAL_NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
# Everything that an encoder of ours can have in a block and in its patch embedding.
_KNOWN = re.compile(
    r"patch_embed\.proj\.(weight|bias)|blocks\.\d+\.("
    r"norm[12]\.(weight|bias)|attn\.(qkv|proj)\.(weight|bias)|mlp\.fc[12]\.(weight|bias)|"
    r"attn\.rpe_k\.lookup_table_weight|attn\.rel_pos_[hw]|ls[12]\.gamma)"
)
_NUM_DIMS = {  # all others have 1
    r"patch_embed\.proj\.weight$": 4,
    r"lookup_table_weight$|^(pos_embed|cls_token)$": 3,
    r"rel_pos_[hw]$|(attn|mlp)\.\w+\.weight$": 2,
}
_REFUSED = {
    r"attn\.[qkv]_bias$": "BEiT's separate biases of queries and values",
    r"relative_position|rel_pos_bias": "BEiT's relative position biases",
    r"attn\.[qk]_norm\.": "norms on queries and keys",
    r"mlp\.(w\d+|fc1_[gx])\.": "a gated MLP (SwiGLU)",
    r"attn\.rpe_[qv]\.": "iRPE on queries or values",
    r"residual\.": "convolutions between the blocks",
    r"^norm_pre\.": "a norm before the first block (CLIP)",
    r"^rope\.": "rotary positions",
}


@dataclass
class Checkpoint:
    """An encoder found in a file, and the rest of the file.

    Attributes:
        path: The file.
        tensors: The encoder's tensors under the official names, and those of the model around it
            (``mask_token``, ``decoder_*``, ``head``, ...).
        outside: The other parts of a detector, under their own names.
        names: Official name -> name in the file.
        meta: The file's plain data; empty for a file of another project.
        dropped: Name in the file -> why it is not among the tensors.
        adapted: Name in the file -> what was changed.
        grid: (H, W) of the absolute positions, if there are any.
    """

    path: str
    tensors: dict[str, Tensor]
    outside: dict[str, Tensor]
    names: dict[str, str]
    meta: dict
    dropped: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    grid: tuple[int, int] | None = None

    def drop(self, name: str, reason: str) -> None:
        """Removes a tensor, given by its official name, and notes the reason."""
        del self.tensors[name]
        self.dropped[self.names.pop(name)] = reason

    @property
    def layout(self) -> str:
        """What kind of file it is, in words."""
        if any(name.startswith("roi_heads.") for name in self.outside):
            return "detector"
        if "encoder_pred.weight" in self.tensors:
            return "LoMaR pretraining"
        if "decoder_embed.weight" in self.tensors:
            is_lomar = self.meta.get("method") == "lomar"
            return "asymmetric LoMaR pretraining" if is_lomar else "MAE pretraining"
        return "classifier" if "head.weight" in self.tensors else "ViT encoder"

    @property
    def architecture(self) -> dict:
        """`architecture_of` the tensors; ``num_heads`` is from ``meta`` if only that has it."""
        found = architecture_of(self.tensors)
        said = self.meta.get("num_heads")
        if found["num_heads"] is None and isinstance(said, int):
            found["num_heads"] = said
        return found


def architecture_of(tensors: dict[str, Tensor]) -> dict:
    """The architecture that the shapes of tensors tell; ``num_heads`` is None if none tells it."""
    proj = tensors["patch_embed.proj.weight"]  # (embed_dim, in_chans, patch_size, patch_size)
    embed_dim = proj.shape[0]
    rel_pos = next((k for k, v in REL_POS_TABLES.items() if f"blocks.0.{v}" in tensors), "none")
    num_heads = None
    if rel_pos != "none":  # tables are (1, head_dim, buckets) or (distances, head_dim)
        num_heads = embed_dim // max(tensors[f"blocks.0.{REL_POS_TABLES[rel_pos]}"].shape[1], 1)
    indexes = [int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")]
    return {
        "patch_size": proj.shape[-1],
        "in_chans": proj.shape[1],
        "embed_dim": embed_dim,
        "depth": max(indexes) + 1,
        "num_heads": num_heads,
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        "rel_pos": rel_pos,
        "abs_pos": "pos_embed" in tensors,
    }


def read_checkpoint(path: str | Path, ema: bool = False) -> Checkpoint:
    """Reads a file and finds the encoder in it.

    Args:
        path, ema: See `read_state_dict`.

    Raises:
        UserError: the file is unreadable, holds no ViT, or one that our encoder cannot represent.
    """
    tensors, meta = read_state_dict(path, ema)
    names = {_without_wrappers(name): name for name in tensors}
    prefix = _find_prefix(names, path)
    inside = {_rename(n[len(prefix) :]): old for n, old in names.items() if n.startswith(prefix)}
    found = Checkpoint(
        path=str(path),
        tensors={name: tensors[old] for name, old in inside.items()},
        outside={n: tensors[old] for n, old in names.items() if not n.startswith(prefix)},
        names=inside | {n: old for n, old in names.items() if not n.startswith(prefix)},
        meta=meta,
    )
    _check_known(found)
    _fold_layer_scale(found)
    _fill_qkv_bias(found)
    _arrange_positions(found)
    return found


def _without_wrappers(name: str) -> str:
    """A name without the prefixes of DistributedDataParallel and torch.compile."""
    return re.sub(r"^((module|_orig_mod)\.)+", "", name)


def _rename(name: str) -> str:
    name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)  # DINOv2's chunks of blocks
    name = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)  # DeiT III
    return {"register_tokens": "reg_token"}.get(name, name)


def _find_prefix(names: dict[str, str], path: str | Path) -> str:
    """The prefix of the encoder's names, such as "" or ``backbone.net.``."""
    mark = "patch_embed.proj.weight"
    prefixes = [name.removesuffix(mark) for name in names if name.endswith(mark)]
    prefixes = [p for p in prefixes if any(n.startswith(p + "blocks.0.") for n in names)]
    if not prefixes:
        raise UserError(
            f"{path} holds no ViT encoder: 0 of its {len(names)} tensors have the names of patch "
            f"embedding and blocks in LoMaR, MAE, timm or detectron2; the first is {min(names)}"
        )
    if len(prefixes) > 1:
        raise UserError(
            f"{path} holds {len(prefixes)} encoders ({', '.join(sorted(prefixes))}): save the "
            "state_dict() of the one you want"
        )
    return prefixes[0]


def _check_known(found: Checkpoint) -> None:
    for name, value in found.tensors.items():
        for pattern, what in _REFUSED.items():
            if re.search(pattern, name) and not name.startswith("decoder"):
                raise UserError(
                    f"{found.path} has {what} ({found.names[name]}), which our encoder does not "
                    "compute: its features would be wrong"
                )
        if name.startswith(("patch_embed.", "blocks.")) and not _KNOWN.fullmatch(name):
            raise UserError(
                f"{found.path} has {found.names[name]}, which is no part of our encoder: its "
                "features would be wrong"
            )
        if re.match(r"(patch_embed|blocks|pos_embed|cls_token|norm)(\.|$)", name):
            _check_values(found, name, value)
    if "blocks.0.mlp.fc1.weight" not in found.tensors:
        raise UserError(f"{found.path} is not a usual ViT: blocks.0.mlp.fc1 is missing")


def _check_values(found: Checkpoint, name: str, value: Tensor) -> None:
    ndim = next((n for pattern, n in _NUM_DIMS.items() if re.search(pattern, name)), 1)
    if value.ndim != ndim or 0 in value.shape:
        raise UserError(
            f"{found.path}: {found.names[name]} has the shape {tuple(value.shape)}, but must have "
            f"{ndim} dimensions"
        )
    if value.is_meta:
        raise UserError(f"{found.path}: {found.names[name]} has a shape, but no values")
    if not value.is_floating_point() or value.layout != torch.strided:
        raise UserError(
            f"{found.path}: {found.names[name]} is of type {value.dtype}, {value.layout}; "
            "quantised or sparse weights must be converted back first"
        )
    if not value.float().isfinite().all():
        raise UserError(
            f"{found.path}: {found.names[name]} holds NaN or infinite values; the run that wrote "
            "it had diverged, use an earlier checkpoint"
        )


def _fold_layer_scale(found: Checkpoint) -> None:
    """Multiplies LayerScale into the linear layer before it, which gives the same output."""
    for name in [name for name in found.tensors if re.search(r"\.ls[12]\.gamma$", name)]:
        layer = name.replace("ls1.gamma", "attn.proj").replace("ls2.gamma", "mlp.fc2")
        gamma = found.tensors.pop(name).double()
        source = found.names.pop(name)
        for part in (f"{layer}.weight", f"{layer}.bias"):
            value = found.tensors.get(part)
            if value is None:
                continue
            if len(gamma) != len(value):
                raise UserError(
                    f"{found.path}: {source} has {len(gamma)} values for the {len(value)} of {part}"
                )
            scaled = value.double() * gamma.reshape(-1, *[1] * (value.ndim - 1))
            found.tensors[part] = scaled.to(value.dtype)
        found.adapted[source] = "LayerScale, multiplied into attn.proj and mlp.fc2"


def _fill_qkv_bias(found: Checkpoint) -> None:
    """Fills missing biases with zeros, which gives the same output."""
    weights = [name for name in found.tensors if name.endswith("attn.qkv.weight")]
    weights = [name for name in weights if name.startswith("blocks.")]
    if any(name.replace("weight", "bias") in found.tensors for name in weights):
        return
    for name in weights:
        zeros = torch.zeros_like(found.tensors[name][:, 0])
        found.tensors[name.replace("weight", "bias")] = zeros
        found.adapted[found.names[name]] = "no bias in the file, filled with zeros"


def _arrange_positions(found: Checkpoint) -> None:
    """Brings positions to (1, 1 + H * W, C), the class token's first; drops other tokens'."""
    others = [name for name in ("dist_token", "reg_token") if name in found.tensors]
    num_others = sum(found.tensors[n].numel() // found.tensors[n].shape[-1] for n in others)
    for name in others:
        found.drop(name, "our encoder has no distillation or register tokens")
    if "pos_embed" not in found.tensors:
        return
    value, source = found.tensors["pos_embed"], found.names["pos_embed"]
    # Positions before the patches': of class token and other tokens; of the class token; none
    # (timm's no_embed_class).
    for first in (1 + num_others, 1, 0):
        found.grid = _grid_of(value.shape[1] - first, found.meta)
        if found.grid is not None:
            break
    else:
        raise UserError(
            f"{found.path}: {source} of shape {tuple(value.shape)} is no square grid of positions"
        )
    if first != 1:
        own = value[:, :1] if first else torch.zeros_like(value[:, :1])
        found.tensors["pos_embed"] = torch.cat([own, value[:, first:]], dim=1)
        what = "positions of other tokens taken out" if first else "zeros for the class token added"
        found.adapted[source] = what
    is_pretrained = "cls_token" in found.tensors  # a detector uses all the positions that it has
    uses_irpe = architecture_of(found.tensors)["rel_pos"] == "irpe"
    if is_pretrained and uses_irpe and not found.meta.get("abs_pos"):
        found.drop("pos_embed", "absolute positions, which LoMaR does not use beside iRPE")


def _grid_of(num_patches: int, meta: dict) -> tuple[int, int] | None:
    """(H, W) of so many patches: from ``meta``, else of a square; None if it does not fit."""
    try:
        height, width = (size // meta["patch_size"] for size in meta["img_size"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        height = width = math.isqrt(max(num_patches, 0))
    return (height, width) if 0 < num_patches == height * width else None
