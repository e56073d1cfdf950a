"""torch.compile for the transformer blocks of a model."""

import warnings
from collections.abc import Callable

from torch import nn

from ..layers import Block

# A model at one image size needs one graph for window and one for global attention, each for
# training and for evaluation. A smaller last batch doubles that. Above the limit dynamo runs a
# block eagerly. The limit is set here because some libraries change it when they are imported:
# timm.optim raises it to a million, and a run would then compile for hours.
RECOMPILE_LIMIT = 16


def compile_blocks(model: nn.Module, backend: str | Callable = "inductor") -> int:
    """Compiles every transformer block in place, and returns how many there are.

    This is regional compilation: equal blocks share one compiled graph, so a user waits for one
    block and not for the whole model. Names in the state dict stay the same. Compilation happens
    at the first step.

    Args:
        model: Any model that contains `Block`.
        backend: As for `torch.compile`.
    """
    _set_recompile_limit(RECOMPILE_LIMIT)
    # dynamo warns of the cache of the index tables; in a graph these tables are constants.
    warnings.filterwarnings("ignore", message=".*functools.lru_cache.*")
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)


def _set_recompile_limit(limit: int) -> None:
    from torch._dynamo import config  # a slow import, and most runs compile nothing

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, name, limit)
