"""Builds a pretraining model from a checkpoint, and finds out which model that is.

It needs detectron2, as everything that reads checkpoints does.
"""

import inspect
import logging
import math
from argparse import Namespace
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from lomar_det.checkpoint import read_state_dict
from lomar_det.checkpoint.rename import USUAL_NUM_HEADS, architecture_of
from lomar_det.checkpoint.serialization import load_plain
from lomar_det.config.lazy import load_config
from lomar_det.errors import UserError

from .lomar import LoMaR
from .mae import MAE

logger = logging.getLogger(__name__)

MODELS = {"lomar": LoMaR, "mae": MAE}
# Whose model has it; the decoder of asymmetric LoMaR has the names of MAE's.
HEADS = {"encoder_pred.weight": ("lomar",), "decoder_pred.weight": ("mae", "lomar")}
MAE_DECODER_HEADS = 16


def load_pretrained(
    path: str | Path,
    config_file: str | Path | None = None,
    norm_pix_loss: bool | None = None,
) -> LoMaR | MAE:
    """Builds the LoMaR or MAE of a checkpoint, with its weights, on the CPU in evaluation mode.

    What the model is comes from the file's ``meta`` (all our runs write it), else from
    ``config_file``, else from a run's ``config.yaml`` beside the file, else (official files) from
    the shapes of the tensors and the arguments of the official training script.

    Args:
        path: ``model_*.pth`` of a run, or an official LoMaR or MAE file with its head.
        config_file: The config of the run, .py or the ``config.yaml`` that it wrote.
        norm_pix_loss: Whether the targets were normalised per patch. None takes what the file says.
            Released files do not say; for them it is True, as in the papers' recipes. That is wrong
            for MAE's files for visualisation.

    Raises:
        UserError: the file is unreadable, has no reconstruction head, or is not of that model.
    """
    tensors, meta = read_state_dict(path)
    methods = _possible_methods(tensors, path)
    described = meta.get("method") in methods
    if described:
        method, settings = meta["method"], {**meta, "rel_pos": meta.get("rel_pos") == "irpe"}
    else:
        found = _from_config(path, config_file, methods)
        method, settings = found or (methods[0], _from_shapes(path, tensors, methods[0]))
    if norm_pix_loss is not None:
        settings["norm_pix_loss"] = norm_pix_loss
    accepted = inspect.signature(MODELS[method]).parameters
    try:
        model = MODELS[method](**{k: v for k, v in settings.items() if k in accepted})
        outcome = model.load_state_dict(tensors, strict=False)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{path} does not fit the {method} model that its "
            f"{'meta describes' if described else 'shapes or its config describe'} ({reason}); "
            "give the config of its run with --config-file"
        ) from None
    if outcome.missing_keys:
        raise UserError(
            f"{path} lacks {len(outcome.missing_keys)} tensors of the {method} model, first "
            f"{outcome.missing_keys[0]}; give the config of its run with --config-file"
        )
    if outcome.unexpected_keys:
        names = outcome.unexpected_keys
        logger.warning("%s: %d tensors not used, first %s", path, len(names), names[0])
    return model.eval()


def _possible_methods(tensors: dict[str, Tensor], path: str | Path) -> tuple[str, ...]:
    """The methods whose models have the file's reconstruction head, the likeliest first."""
    for head, methods in HEADS.items():
        if head in tensors:
            return methods
    raise UserError(
        f"{path} has no reconstruction head (none of {', '.join(HEADS)}): give a file "
        "with all of the pretraining model, model_final.pth or model_*.pth in the run's folder "
        "(backbone_final.pth is the encoder alone); of MAE's official files, one with the decoder"
    )


def _from_config(
    path: str | Path, config_file: str | Path | None, methods: tuple[str, ...]
) -> tuple[str, dict] | None:
    """Method and settings from the given config or the one beside the file; None without one."""
    source = Path(config_file) if config_file else Path(path).parent / "config.yaml"
    if not source.is_file():
        if not config_file:
            return None
        raise UserError(f"the config file {source} does not exist")
    try:
        # YAML is read as plain data; a .py file is the user's own code
        config = load_config(source, []) if source.suffix == ".py" else OmegaConf.load(source)
        model = OmegaConf.to_container(config.model, resolve=True)
        target = model["_target_"]
    except (OSError, yaml.YAMLError, OmegaConfBaseException, KeyError, ValueError) as error:
        if not config_file:
            logger.warning("%s beside the checkpoint is not used: %s", source, error)
            return None
        raise UserError(f"{source} is not the config of a pretraining run: {error}") from None
    name = (target if isinstance(target, str) else target.__name__).rpartition(".")[2]
    for method in methods:
        if name == MODELS[method].__name__:
            return method, model
    if not config_file:  # the file beside the checkpoint describes another model: ignore it
        return None
    holds = " or ".join(MODELS[method].__name__ for method in methods)
    raise UserError(f"{source} describes {name}, but {path} holds a {holds}")


def _from_shapes(path: str | Path, tensors: dict[str, Tensor], method: str) -> dict:
    """Settings of an official file, from its tensors and the arguments that it was trained with."""
    try:
        settings = architecture_of(tensors)
        settings["rel_pos"] = uses_irpe = settings["rel_pos"] == "irpe"
        settings["abs_pos"] &= method == "mae" or not uses_irpe
        settings["img_size"] = _image_size(tensors, settings["patch_size"])
        if method == "mae":
            settings["decoder_embed_dim"] = tensors["decoder_embed.weight"].shape[0]
            blocks = [key.split(".")[1] for key in tensors if key.startswith("decoder_blocks.")]
            settings["decoder_depth"] = 1 + max(map(int, blocks))
            settings["decoder_num_heads"] = MAE_DECODER_HEADS
    except (IndexError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is no complete {MODELS[method].__name__}: {error} is not as expected; give "
            "model_final.pth of a run or an official file"
        ) from None
    embed_dim = settings["embed_dim"]
    settings["num_heads"] = settings["num_heads"] or USUAL_NUM_HEADS.get(embed_dim)
    if settings["num_heads"] is None:
        raise UserError(
            f"{path} does not say how many heads its model of embed_dim {embed_dim} has, which is "
            "none of the usual ViTs: give the config of its run with --config-file"
        )
    arguments = load_plain(path).get("args")
    if isinstance(arguments, Namespace):  # of the official training scripts
        given = vars(arguments)
        settings |= {k: given[k] for k in ("norm_pix_loss", "mask_ratio") if k in given}
    logger.info("%s: %s taken from the shapes of its tensors", path, MODELS[method].__name__)
    return settings


def _image_size(tensors: dict[str, Tensor], patch_size: int) -> int:
    """From the positions, which LoMaR's files have but do not use, else the papers' 224 pixels."""
    if "pos_embed" not in tensors:
        return 224 // patch_size * patch_size
    return math.isqrt(tensors["pos_embed"].shape[1] - 1) * patch_size
