"""Image relative position encoding (iRPE): method "product", contextual, on keys.

Wu et al., "Rethinking and Improving Relative Position Encoding for Vision Transformer", ICCV 2021,
equations 14, 17 and 18, as LoMaR uses it: the encoding depends on the coordinates of a query and a
key alone, so the same 49 rows serve a 7x7 pretraining window, a 14x14 detector window and a 64x64
grid, with no interpolation.

Shapes: N tokens, H x W patch grid, D head_dim, K buckets.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

RATIO = 1.9
NUM_SIDE_BUCKETS = 7  # 1-D buckets -3 .. 3
NUM_SPATIAL_BUCKETS = NUM_SIDE_BUCKETS**2  # 49
CLS_BUCKET = NUM_SPATIAL_BUCKETS  # index 49: every pair in which the class token takes part
NUM_BUCKETS = NUM_SPATIAL_BUCKETS + 1


class TokenGrid(NamedTuple):
    """A sequence of tokens: an optional class token, then a patch grid in row-major order.

    Hashable and free of tensors, so that index tables can be cached by it.
    """

    height: int
    width: int
    cls_token: bool = False

    @property
    def num_tokens(self) -> int:
        return self.height * self.width + int(self.cls_token)


def piecewise_index(distance: int, ratio: float = RATIO) -> int:
    """1-D bucket of a signed distance in patches (iRPE equation 18, truncated to an integer)."""
    alpha, beta, gamma = ratio, 2 * ratio, 8 * ratio
    if abs(distance) <= alpha:
        return int(distance)
    log_part = math.log(abs(distance) / alpha) / math.log(gamma / alpha) * (beta - alpha)
    return int(math.copysign(min(round(alpha + log_part), beta), distance))


_FAR = math.ceil(8 * RATIO)  # gamma: all larger distances share the outermost bucket


def distance_buckets(reach: int) -> list[int]:
    """1-D buckets, 0 .. 6, of the distances -reach .. reach."""
    return [piecewise_index(d) + NUM_SIDE_BUCKETS // 2 for d in range(-reach, reach + 1)]


def side_buckets(size: int) -> Tensor:
    """1-D buckets, 0 .. 6, of every (query, key) pair along one side of a grid: (size, size)."""
    # The device is given because results are cached: they must not depend on the default device.
    buckets = torch.tensor(distance_buckets(_FAR), device="cpu")
    coords = torch.arange(size, device="cpu")
    return buckets[(coords[:, None] - coords).clamp(-_FAR, _FAR) + _FAR]


@lru_cache(maxsize=4)  # 134 MB for a 64x64 grid
@torch.inference_mode(False)  # training must be able to use a table that inference made
def _grid_buckets(grid: TokenGrid) -> Tensor:
    rows, columns = side_buckets(grid.height), side_buckets(grid.width)
    spatial = rows[:, None, :, None] * NUM_SIDE_BUCKETS + columns[None, :, None, :]  # (H, W, H, W)
    num_patches = grid.height * grid.width
    start = int(grid.cls_token)
    buckets = torch.full((grid.num_tokens, grid.num_tokens), CLS_BUCKET, device="cpu")
    buckets[start:, start:] = spatial.reshape(num_patches, num_patches)
    return buckets


def bucket_table(grid: TokenGrid, device: torch.device | str = "cpu") -> Tensor:
    """Bucket of every (query, key) pair of a grid of tokens: (N, N) long, values 0 .. 49."""
    return _grid_buckets(grid).to(device)


def subset_buckets(grid: TokenGrid, patch_ids: Tensor) -> Tensor:
    """Buckets for an arbitrary subset of patches per sample, as MAE's encoder sees them.

    Args:
        grid: The whole grid. If it has a class token, every subset starts with one.
        patch_ids: (B, n) row-major patch indices, in any order.

    Returns:
        (B, N, N) long, N = n, or n + 1 with a class token.
    """
    if grid.cls_token:
        cls = torch.zeros_like(patch_ids[:, :1])
        patch_ids = torch.cat([cls, patch_ids + 1], dim=1)
    table = bucket_table(grid, patch_ids.device)
    return table[patch_ids[:, :, None], patch_ids[:, None, :]]


class IRPE(nn.Module):
    """The learned table of one attention layer, shared by its heads; zero-initialised.

    Its single parameter keeps the name and shape of the released LoMaR checkpoint:
    ``rpe_k.lookup_table_weight``, (1, head_dim, 50), or 49 buckets without a class token.
    """

    def __init__(self, head_dim: int, num_buckets: int = NUM_BUCKETS):
        super().__init__()
        self.lookup_table_weight = nn.Parameter(torch.zeros(1, head_dim, num_buckets))

    @property
    def table(self) -> Tensor:  # (D, K)
        return self.lookup_table_weight[0]
