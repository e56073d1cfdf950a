"""Converts checkpoints: what `tools/convert_checkpoint.py` runs.

A layout takes only what it can represent exactly. Another patch size is the one approximation.
"""

import re
from pathlib import Path

import torch
from timm.layers import resample_patch_embed
from torch import Tensor

from .. import __version__
from ..errors import UserError
from ..layers import grid_size, sincos_pos_embed
from .load import by_reason
from .rename import USUAL_NUM_HEADS, Checkpoint, read_checkpoint
from .serialization import save_atomically
from .state_dicts import backbone_state_dict, read_state_dict

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SUFFIXES = (".pth", ".safetensors")


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    layout: str = "backbone",
    dtype: str | None = None,
    num_heads: int | None = None,
    patch_size: int | None = None,
    ema: bool = False,
    force: bool = False,
) -> str:
    """Writes the weights of one file in another layout or format.

    Args:
        source: Anything that `load_weights` takes.
        target: ``.pth`` or ``.safetensors``.
        layout: ``backbone``, our file of an encoder, with ``meta``; ``detectron2``, the names of
            its ViTDet; ``timm``, the names of its ViT, without anything around them; ``lomar``
            and ``mae``, as their official code writes; ``same``, all tensors of the model as they
            are (a detector without its optimizer, or another format).
        dtype: ``fp32``, ``fp16`` or ``bf16``; None keeps the file's.
        num_heads: Heads of the encoder, for ``meta``, if the file does not say.
        patch_size: Resize the kernels of the patch embedding to this, in pixels. Their output stays
            about the same on images resized by the same factor (FlexiViT, Beyer et al., CVPR 2023).
            A detector with ViT-H/14 needs it: the pyramid takes patches of 16.
        ema: Take the averaged weights in the file instead of the model's.
        force: Overwrite ``target``.

    Returns:
        The report, lines of text.

    Raises:
        UserError: the source cannot be read, the layout cannot represent it, or the target exists
            or cannot be written.
    """
    _check_target(Path(target), force)
    if layout == "same":
        if patch_size or num_heads:
            raise UserError("--to same keeps all tensors: leave out --patch-size and --num-heads")
        tensors, meta = read_state_dict(source, ema)
        lines = []
    else:
        found = read_checkpoint(source, ema)
        if patch_size:
            _resize_patches(found, patch_size)
        if layout in ("lomar", "mae") and found.layout.startswith("asymmetric"):
            for name in [n for n in found.tensors if re.match("decoder_|mask_token", n)]:
                found.drop(name, "the decoder of asymmetric LoMaR, which no other code has")
        tensors, meta = _WRITERS[layout](found, num_heads)
        lines = [_describe(found)]
        lines += by_reason("adapted", found.adapted)
        lines += by_reason("dropped", found.dropped | _left_out(found, tensors, layout))
    tensors = {name: _cast(name, value, dtype).contiguous() for name, value in tensors.items()}
    is_bare = layout == "timm" and Path(target).suffix == ".pth"
    data = {"model": tensors} | ({"meta": meta} if meta else {})
    save_atomically(tensors if is_bare else data, target)
    lines.append(f"{target}: {len(tensors)} tensors, layout {layout}")
    lines += [f"  meta: {meta}"] if meta else []
    return "\n".join(lines)


def _check_target(target: Path, force: bool) -> None:
    if target.suffix not in SUFFIXES:
        raise UserError(f"{target} must end in {' or '.join(SUFFIXES)}")
    if not target.parent.is_dir():
        raise UserError(f"the folder of {target} does not exist")
    if target.exists() and not force:
        raise UserError(f"{target} exists; choose another name, or overwrite it with --force")


def _cast(name: str, value: Tensor, dtype: str | None) -> Tensor:
    """A copy with memory of its own, as safetensors requires; floating point as ``dtype``."""
    if dtype is None or not value.is_floating_point():
        return value.clone()
    cast = value.to(DTYPES[dtype], copy=True)
    if not cast.isfinite().all():
        raise UserError(f"{name} has values that {dtype} cannot hold; use another --dtype")
    return cast


def _resize_patches(found: Checkpoint, patch_size: int) -> None:
    name = "patch_embed.proj.weight"
    old = found.architecture["patch_size"]
    if patch_size < 1:
        raise UserError(f"--patch-size {patch_size} must be at least 1")
    size = [patch_size, patch_size]
    found.tensors[name] = resample_patch_embed(found.tensors[name].float(), size)
    found.adapted[found.names[name]] = f"kernels of {old} pixels resized to {patch_size}"
    for part in [n for n in found.tensors if re.match("(encoder|decoder)_pred", n)]:
        found.drop(part, f"predicts the pixels of patches of {old}")
    if "patch_size" in found.meta:
        sides = [side // old * patch_size for side in found.meta.get("img_size", [])]
        found.meta |= {"patch_size": patch_size} | ({"img_size": sides} if sides else {})


def _describe(found: Checkpoint) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in found.architecture.items())
    return f"{found.path}: {found.layout}, {facts}"


def _left_out(found: Checkpoint, tensors: dict[str, Tensor], layout: str) -> dict[str, str]:
    kept = {name.removeprefix("backbone.net.") for name in tensors}
    return {
        found.names[name]: f"no part of the layout {layout}"
        for name in (*found.tensors, *found.outside)
        if name not in kept and name in found.names
    }


def _backbone(found: Checkpoint, num_heads: int | None) -> tuple[dict[str, Tensor], dict]:
    return backbone_state_dict(found.tensors), _meta(found, num_heads)


def _meta(found: Checkpoint, num_heads: int | None) -> dict:
    """The file's own ``meta``, or for another project's file what its tensors tell."""
    architecture = found.architecture
    known, embed_dim = architecture["num_heads"], architecture["embed_dim"]
    if known and num_heads and known != num_heads:
        raise UserError(f"{found.path} has {known} heads, not the {num_heads} of --num-heads")
    if "embed_dim" in found.meta:
        return found.meta
    heads = known or num_heads or USUAL_NUM_HEADS.get(embed_dim)
    if not heads or embed_dim % heads:
        raise UserError(
            f"{found.path} does not say how many heads its embed_dim of {embed_dim} is divided "
            "into: give --num-heads"
        )
    meta = architecture | {"num_heads": heads}
    if found.grid:
        meta["img_size"] = [side * meta["patch_size"] for side in found.grid]
    method = {"LoMaR pretraining": "lomar", "MAE pretraining": "mae"}.get(found.layout)
    if method:
        meta["method"] = method
    return meta | {"converted_from": Path(found.path).name, "code_version": __version__}


def _lomar(found: Checkpoint, _) -> tuple[dict[str, Tensor], dict]:
    _refuse_rel_pos(found, "the official LoMaR code", "decomposed")
    _require(found, "the official LoMaR code", "cls_token")
    if found.architecture["rel_pos"] == "none":
        return found.tensors, {}
    # The official models hold sine-cosine positions even if they do not use them.
    size, patch_size = found.meta.get("img_size", 224), found.architecture["patch_size"]
    grid = found.grid or grid_size(size, patch_size)
    positions = sincos_pos_embed(found.architecture["embed_dim"], grid)
    return {"pos_embed": positions} | found.tensors, {}


def _mae(found: Checkpoint, _) -> tuple[dict[str, Tensor], dict]:
    _refuse_rel_pos(found, "MAE's code", "irpe", "decomposed")
    _require(found, "MAE's code", "cls_token", "pos_embed")
    return found.tensors, {}


def _timm(found: Checkpoint, _) -> tuple[dict[str, Tensor], dict]:
    _refuse_rel_pos(found, "timm's VisionTransformer", "irpe", "decomposed")
    norm = "fc_norm" if "fc_norm.weight" in found.tensors else "norm"
    _require(found, "timm's VisionTransformer", "cls_token", "pos_embed", f"{norm}.weight")
    parts = ("cls_token", "pos_embed", "patch_embed.", "blocks.", f"{norm}.", "head.")
    return {name: value for name, value in found.tensors.items() if name.startswith(parts)}, {}


def _detectron2(found: Checkpoint, _) -> tuple[dict[str, Tensor], dict]:
    _refuse_rel_pos(found, "detectron2's ViT", "irpe")
    parts = ("pos_embed", "patch_embed.", "blocks.")
    tensors = {
        f"backbone.net.{name}": value
        for name, value in found.tensors.items()
        if name.startswith(parts)
    }
    if found.layout != "detector":
        return tensors, {}
    return tensors | found.outside, found.meta


_WRITERS = {
    "backbone": _backbone,
    "detectron2": _detectron2,
    "lomar": _lomar,
    "mae": _mae,
    "timm": _timm,
}
LAYOUTS = (*_WRITERS, "same")


def _refuse_rel_pos(found: Checkpoint, reader: str, *kinds: str) -> None:
    rel_pos = found.architecture["rel_pos"]
    if rel_pos in kinds:
        name = {"irpe": "iRPE", "decomposed": "decomposed relative positions"}[rel_pos]
        raise UserError(
            f"{found.path} was trained with {name}, which {reader} does not compute: without the "
            "tables its features would be wrong. Use a backbone of lomar_det.modeling in "
            "detectron2, or one of lomar_pretrain.models.timm_vit (iRPE only) in timm"
        )


def _require(found: Checkpoint, reader: str, *names: str) -> None:
    missing = [name for name in names if name not in found.tensors]
    if missing:
        raise UserError(
            f"{found.path} has no {', no '.join(missing)}, which {reader} needs; convert the "
            "checkpoint of pretraining or classification, not a detector's"
        )
