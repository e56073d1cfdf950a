"""Weight initialisation of the transformers."""

from torch import nn


def init_vit_weights(module: nn.Module) -> None:
    """Xavier-uniform linears, zero biases: MAE's initialisation. Use with ``model.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_patch_embed(proj: nn.Conv2d) -> None:
    """The patch embedding is a linear layer written as a convolution: initialise it as one."""
    nn.init.xavier_uniform_(proj.weight.flatten(1))
    nn.init.zeros_(proj.bias)
