"""torch.compile for the part of a model that is worth it: its transformer blocks."""

import warnings

from torch import nn

from ..layers import Block


def compile_blocks(model: nn.Module) -> int:
    """Compiles every transformer block in place, and returns how many there are.

    Regional compilation: equal blocks share one compiled graph, so a user waits for one block and
    not for the whole model, and names in the state dict stay what they are. Compilation happens at
    the first step.
    """
    # The index tables are cached for eager calls; in a graph they are constants.
    warnings.filterwarnings("ignore", message=".*functools.lru_cache.*")
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.compile()
    return len(blocks)
