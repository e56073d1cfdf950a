"""The model of a config."""

from detectron2.config import instantiate
from omegaconf import DictConfig
from torch import nn

from ..errors import UserError
from .norm import fuse_norms


def build_model(cfg: DictConfig) -> nn.Module:
    """Instantiates ``cfg.model``; an error of the model becomes a `UserError`.

    The ``LN`` of detectron2's heads becomes a `ChannelLayerNorm`, which computes the same.
    """
    try:
        return fuse_norms(instantiate(cfg.model))
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise UserError(f"model: {error}") from error
