"""Weights from elsewhere: the one place where they are read, renamed, checked and reported.

`files` reads and writes, `layouts` finds the encoder in what others wrote, `load` puts it into a
model, and `convert` into another file.
"""

from .convert import convert_checkpoint
from .files import backbone_state_dict, read_state_dict, save_backbone
from .load import LoadReport, find_encoder, load_encoder_weights, load_weights

__all__ = [
    "LoadReport",
    "backbone_state_dict",
    "convert_checkpoint",
    "find_encoder",
    "load_encoder_weights",
    "load_weights",
    "read_state_dict",
    "save_backbone",
]
