"""Checkpoints: the one place where they are read, renamed, checked and reported.

`serialization` reads and writes files. `state_dicts` finds the tensors in them. `rename` finds the
encoder among the tensors, whoever wrote them. `load` puts it into a model, `convert` into another
file.
"""

from ..compat import require_detectron2

require_detectron2()

from .convert import convert_checkpoint
from .load import LoadReport, find_encoder, load_encoder_weights, load_weights, reinit_blocks
from .state_dicts import backbone_state_dict, read_state_dict, save_backbone

__all__ = [
    "LoadReport",
    "backbone_state_dict",
    "convert_checkpoint",
    "find_encoder",
    "load_encoder_weights",
    "load_weights",
    "read_state_dict",
    "reinit_blocks",
    "save_backbone",
]
