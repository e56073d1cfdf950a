"""The one place where weights from elsewhere are renamed, checked and reported.

Takes LoMaR and MAE files (ours and the official ones, pretraining or transfer) and detectors of
ours; anything that is not the encoder is dropped, by name and with the reason.
"""

import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from .engine import load_plain, save_atomically
from .errors import UserError
from .layers import NUM_SPATIAL_BUCKETS
from .modeling import LoMaRViT

logger = logging.getLogger(__name__)

MIN_LOADED = 0.95  # share of the encoder's tensors that must arrive

# Tensors of foreign files that an encoder in a detector has no use for: pattern -> reason.
_NOT_IN_DETECTOR = {
    r"cls_token$": "the detector has no class token",
    r"mask_token$": "pretraining only",
    r"encoder_pred\.": "pretraining only",
    r"decoder": "pretraining only",
    r"(fc_)?norm\.(weight|bias)$": "the detector's features are taken before the final norm",
    r"head\.": "classification only",
}


@dataclass
class LoadReport:
    """What became of every tensor: of the file (loaded, dropped) and the model (initialised)."""

    source: str
    loaded: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"Weights from {self.source}: {len(self.loaded)} tensors loaded"]
        for title, tensors in (("dropped", self.dropped), ("initialised", self.initialised)):
            for reason in sorted(set(tensors.values())):
                names = [name for name, why in tensors.items() if why == reason]
                lines.append(f"  {title}: {len(names)} ({reason}): {_shorten(names)}")
        return "\n".join(lines)


def _shorten(names: list[str], limit: int = 4) -> str:
    rest = f", ... {names[-1]}" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a checkpoint file and its ``meta``, if it has one.

    Raises:
        UserError: see `load_plain`; or the file holds no tensors by name.
    """
    data = load_plain(path)
    meta = data.get("meta", {}) if isinstance(data, dict) else {}
    for key in ("model", "state_dict"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
            break
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not tensors by name")
    tensors = {name: value for name, value in data.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors by name; is it a checkpoint of a model?")
    return tensors, meta if isinstance(meta, dict) else {}


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Loads a checkpoint into a detector or a backbone, and says what became of every tensor.

    A checkpoint of a whole detector (it has the model's own names) fills the whole model; anything
    else fills the `LoMaRViT` inside it.

    Args:
        model: A `LoMaRViT`, or any module that contains one.
        path: ``.pth`` or ``.safetensors``.

    Raises:
        UserError: the file is unreadable, its patch size, width or depth is not the model's, or
            less than 95 % of the encoder's tensors arrived. The model is then unchanged.
    """
    tensors, _ = read_state_dict(path)
    prefix, _ = find_encoder(model)
    report = LoadReport(str(path))
    own = model.state_dict()
    is_detector = bool(prefix) and any(name.startswith("roi_heads.") for name in tensors)
    state = {}
    for name, value in tensors.items():
        target = name if is_detector else prefix + _strip_prefixes(name)
        reason = None if is_detector else _why_not_in_detector(target[len(prefix) :])
        if reason is None:
            value, reason = _fit(value, target, own.get(target))
        if reason is None:
            state[target] = value
            report.loaded.append(name)
        else:
            report.dropped[name] = reason
    for name in own:
        if name not in state:
            outside = not is_detector and not name.startswith(prefix)
            report.initialised[name] = "outside the encoder" if outside else "not in the file"
    _check_encoder_arrived(report, state, own, prefix, path)
    model.load_state_dict(state, strict=False)
    logger.info("%s", report)
    return report


def find_encoder(model: nn.Module) -> tuple[str, LoMaRViT]:
    """The `LoMaRViT` in a model and the prefix of its tensors' names (empty for itself)."""
    for name, module in model.named_modules():
        if isinstance(module, LoMaRViT):
            return (name + "." if name else ""), module
    raise UserError("the model has no LoMaRViT backbone to load weights into")


def _strip_prefixes(name: str) -> str:
    """Removes what wrappers and detectors put before an encoder's own names."""
    return re.sub(r"^((module|model|backbone|net)\.)+", "", name)


def _why_not_in_detector(name: str) -> str | None:
    for pattern, reason in _NOT_IN_DETECTOR.items():
        if re.match(pattern, name):
            return reason
    return None


def _fit(value: Tensor, name: str, own: Tensor | None) -> tuple[Tensor, str | None]:
    """The tensor as the model needs it, and None; or the reason why it cannot be used."""
    if own is None:
        if name.endswith("pos_embed"):
            return value, "absolute positions, and the model uses none"
        if name.endswith("lookup_table_weight"):
            return value, "iRPE table, and the model uses none"
        return value, "unknown to the model"
    if name.endswith("lookup_table_weight"):
        value = value[..., :NUM_SPATIAL_BUCKETS]  # without the class token's bucket 49
    if value.shape != own.shape:
        return value, f"shape {tuple(value.shape)} is not the model's {tuple(own.shape)}"
    return value, None


def _check_encoder_arrived(
    report: LoadReport,
    state: dict[str, Tensor],
    own: dict[str, Tensor],
    prefix: str,
    path: str | Path,
) -> None:
    _check_depth(report, own, prefix, path)
    # Decomposed tables start at zero in every recipe: MAE and timm files have none.
    wanted = {
        name
        for name in own
        if name.startswith((prefix + "blocks.", prefix + "patch_embed."))
        and not name.endswith(("rel_pos_h", "rel_pos_w"))
    }
    # A head for other classes may be dropped; a part of the encoder may not.
    mismatched = [
        f"{name}: {why}"
        for name, why in report.dropped.items()
        if why.startswith("shape") and not name.startswith(("roi_heads.", "proposal_generator."))
    ]
    arrived = len(wanted & state.keys())
    if mismatched or arrived < MIN_LOADED * len(wanted):
        hint = f"; first mismatch: {mismatched[0]}" if mismatched else ""
        tables = [name for name in wanted - state.keys() if name.endswith("lookup_table_weight")]
        if tables and not mismatched and arrived == len(wanted) - len(tables):
            hint = (
                "; it was trained without iRPE: set model.backbone.net.rel_pos=decomposed (or "
                "none) and model.backbone.net.use_abs_pos=True"
            )
        raise UserError(
            f"{path} does not fit the backbone: {arrived} of {len(wanted)} encoder tensors "
            f"arrived{hint}. Use a checkpoint of the same patch size, embed_dim and depth, or set "
            "model.backbone.net.* to the checkpoint's"
        )


def _check_depth(report: LoadReport, own: dict[str, Tensor], prefix: str, path) -> None:
    def depth(names) -> int:
        found = [re.search(r"(?:^|\.)blocks\.(\d+)\.", name) for name in names]
        return max((int(match[1]) + 1 for match in found if match), default=0)

    wanted = depth(name for name in own if name.startswith(prefix))
    names = [n for n in (*report.loaded, *report.dropped) if "decoder_" not in n]
    if 0 < depth(names) != wanted:
        raise UserError(
            f"{path} has {depth(names)} blocks, the model {wanted}: set model.backbone.net.depth "
            "to the checkpoint's, or use another one"
        )


def backbone_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a pretraining model that the next stage starts from: the encoder's."""
    keep = re.compile(r"(patch_embed|cls_token|pos_embed|blocks|norm)(\.|$)")
    return {
        name: value.detach().cpu().contiguous()
        for name, value in state_dict.items()
        if keep.match(name)
    }


def save_backbone(path: str | Path, state_dict: dict[str, Tensor], meta: dict) -> None:
    """Writes ``path`` (.pth, with ``meta``) and the same as .safetensors beside it."""
    path, tensors = Path(path), backbone_state_dict(state_dict)
    save_atomically({"model": tensors, "meta": meta}, path)
    # safetensors' metadata is text by text
    save_file(tensors, path.with_suffix(".safetensors"), metadata={"meta": json.dumps(meta)})
