"""Checkpoint files as tensors by name and a plain-data ``meta``."""

import re
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from .serialization import load_plain, save_atomically

# The key of a model's tensors: in our files and most others, in Lightning's, in DINO's.
_MODEL_KEYS = ("model", "state_dict", "teacher")


def read_state_dict(path: str | Path, ema: bool = False) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a checkpoint file and its ``meta``, if it has one.

    Args:
        path: ``.pth``, ``.safetensors``, or a ``.pkl`` of detectron2's model zoo.
        ema: Take the averaged weights in the file instead of the model's.

    Raises:
        UserError: see `load_plain`; or the file holds no tensors by name, or with ``ema`` none that
            are averaged.
    """
    data = load_plain(path)
    meta = data.get("meta") if isinstance(data, dict) else None
    if ema:
        data = _averaged(data)
        if data is None:
            raise UserError(f"{path} holds no averaged (EMA) weights; use it without that option")
    elif isinstance(data, dict):
        found = [data[key] for key in _MODEL_KEYS if isinstance(data.get(key), dict)]
        data = found[0] if found else data
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not tensors by name")
    tensors = {k: v for k, v in data.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors by name; is it a checkpoint of a model?")
    return tensors, meta if isinstance(meta, dict) else {}


def _averaged(data) -> dict | None:
    """The averaged weights of our runs' trainer, or of timm's checkpoints."""
    if not isinstance(data, dict):
        return None
    trainer = data["trainer"] if isinstance(data.get("trainer"), dict) else {}
    found = trainer.get("ema"), data.get("ema"), data.get("state_dict_ema")
    return next((value for value in found if isinstance(value, dict)), None)


def backbone_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors of a pretraining model, which the next stage starts from."""
    keep = re.compile(r"(patch_embed|cls_token|pos_embed|blocks|norm)(\.|$)")
    return {
        name: value.detach().cpu().contiguous()
        for name, value in state_dict.items()
        if keep.match(name)
    }


def save_backbone(path: str | Path, state_dict: dict[str, Tensor], meta: dict) -> None:
    """Writes ``path`` (.pth, with ``meta``) and the same as .safetensors beside it."""
    data = {"model": backbone_state_dict(state_dict), "meta": meta}
    for suffix in (".pth", ".safetensors"):
        save_atomically(data, Path(path).with_suffix(suffix))
