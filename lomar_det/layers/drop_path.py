"""Stochastic depth per sample (Huang et al., ECCV 2016)."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Leaves a residual branch out for some samples while training; otherwise the identity.

    Eager, it draws the numbers of timm's ``DropPath`` and gives the same result to the bit.

    torch.compile fixes a Python float in the graph, so blocks of different rates would need a
    graph each. A compiled graph reads the rate from a buffer instead, and one graph serves all
    blocks. As with timm's module, a generated kernel draws other numbers than eager code.

    Args:
        drop_prob: Share of samples for which the branch is left out, in [0, 1).

    Raises:
        ValueError: another ``drop_prob``.
    """

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise ValueError(f"the rate of stochastic depth is {drop_prob}, not in [0, 1)")
        self.drop_prob = drop_prob
        # Not persistent: a checkpoint has no key of stochastic depth.
        self.register_buffer("keep_prob", torch.tensor(1 - drop_prob), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...), what stays divided by the share that stays."""
        if not self.training:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        if torch.compiler.is_compiling():
            kept = torch.rand(shape, device=x.device) < self.keep_prob
            return x * (kept / self.keep_prob).to(x.dtype)
        if not self.drop_prob:
            return x
        keep_prob = 1 - self.drop_prob
        return x * x.new_empty(shape).bernoulli_(keep_prob).div_(keep_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"
