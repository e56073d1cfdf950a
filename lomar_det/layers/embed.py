"""From pixels to tokens: patch embedding and absolute positions.

Shapes: B images, H x W patch grid, p patch size, C embed_dim. Patch pixels are laid out
(row, column, channel), as in the MAE and LoMaR targets.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def to_pair(size) -> tuple[int, int]:
    """An int or a (height, width) sequence as a pair."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width  # not int(): that would fix the symbolic sizes of torch.export


def grid_size(img_size, patch_size: int) -> tuple[int, int]:
    """(H, W) of the patch grid of an image size in pixels.

    Raises:
        ValueError: the image size is not a positive multiple of the patch size.
    """
    height, width = to_pair(img_size)
    if (
        patch_size < 1
        or min(height, width) < patch_size
        or height % patch_size
        or width % patch_size
    ):
        raise ValueError(
            f"image size {height}x{width} is not a multiple of the patch size {patch_size}: "
            f"resize or pad to {math.ceil(height / max(patch_size, 1)) * patch_size}x"
            f"{math.ceil(width / max(patch_size, 1)) * patch_size}"
        )
    return height // patch_size, width // patch_size


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """(B, 3, H * p, W * p) -> (B, H * W, p * p * 3)."""
    B, channels = images.shape[:2]
    H, W = grid_size(images.shape[2:], patch_size)
    x = images.reshape(B, channels, H, patch_size, W, patch_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, H * W, patch_size**2 * channels)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Inverse of `patchify`: (B, H * W, p * p * 3) -> (B, 3, H * p, W * p)."""
    B, (H, W) = patches.shape[0], grid
    x = patches.reshape(B, H, W, patch_size, patch_size, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, H * patch_size, W * patch_size)


class PatchEmbed(nn.Module):
    """Linear embedding of square patches, as a convolution or on patches already cut out."""

    def __init__(self, patch_size: int = 16, in_chans: int = 3, embed_dim: int = 768):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H * p, W * p) -> (B, H * W, C)."""
        grid_size(images.shape[2:], self.patch_size)
        return self.proj(images).flatten(2).transpose(1, 2)

    def embed_patches(self, patches: Tensor) -> Tensor:
        """(..., p * p * 3) pixels as from `patchify` -> (..., C): only what is needed."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weight, self.proj.bias)


def sincos_pos_embed(embed_dim: int, grid: tuple[int, int], cls_token: bool = True) -> Tensor:
    """Fixed 2-D sine-cosine positions as in MAE: (1, N, C), zeros for the class token.

    First half of the channels encodes the column, second half the row; each half is sines, then
    cosines, of the coordinate over 10000^(i / (C / 4)).
    """
    if embed_dim % 4:
        raise ValueError(f"2-D sine-cosine positions need embed_dim % 4 == 0, got {embed_dim}")
    H, W = grid
    omega = 1.0 / 10000 ** (torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4))

    def encode(coords: Tensor) -> Tensor:  # (N,) -> (N, C / 2)
        angles = coords.double()[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows = torch.arange(H).repeat_interleave(W)
    columns = torch.arange(W).repeat(H)
    embed = torch.cat([encode(columns), encode(rows)], dim=1)
    if cls_token:
        embed = torch.cat([embed.new_zeros(1, embed_dim), embed])
    return embed.float()[None]


def resize_pos_embed(pos_embed: Tensor, grid: tuple[int, int], cls_token: bool = True) -> Tensor:
    """Patch positions of a square table resized to ``grid``, bicubic as in detectron2's ViT.

    Args:
        pos_embed: (1, [1 +] S * S, C).
        grid: (H, W) wanted.
        cls_token: Whether the table starts with a class token, which is dropped.

    Returns:
        (1, H * W, C).
    """
    if cls_token:
        pos_embed = pos_embed[:, 1:]
    side = math.isqrt(pos_embed.shape[1])
    if side * side != pos_embed.shape[1]:
        raise ValueError(f"{pos_embed.shape[1]} absolute positions do not form a square grid")
    if (side, side) == tuple(grid):
        return pos_embed
    table = pos_embed.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=tuple(grid), mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).flatten(1, 2)
