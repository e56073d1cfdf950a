"""Which patches LoMaR looks at: a few random square windows per image, most of each masked.

Shapes: B images, H x W patch grid, k window side in patches, M = B * num_windows windows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lomar_det.layers import to_pair


@dataclass(frozen=True)
class WindowSample:
    """Windows of a batch, image-major: all windows of image 0, then of image 1, and so on.

    Attributes:
        image_ids: (M,) long, index of each window's image in the batch.
        patch_ids: (M, k * k) long, row-major indices into the image's patch grid.
        mask: (M, k * k) bool, True = masked, to be reconstructed.
    """

    image_ids: Tensor
    patch_ids: Tensor
    mask: Tensor

    def to(self, device) -> "WindowSample":
        return WindowSample(*(t.to(device) for t in (self.image_ids, self.patch_ids, self.mask)))


def check_windows(grid: tuple[int, int], window_size: int, num_windows: int, mask_ratio: float):
    """Raises ValueError, with the reason, for settings that allow no windows."""
    if not 1 <= window_size <= min(grid):
        raise ValueError(
            f"window_size {window_size} does not fit the {grid[0]}x{grid[1]} patch grid: choose "
            f"1 to {min(grid)}, or a larger image"
        )
    if num_windows < 1:
        raise ValueError(f"num_windows must be at least 1, got {num_windows}")
    num_masked = int(window_size**2 * mask_ratio)
    if not 0 < num_masked <= window_size**2:
        raise ValueError(
            f"mask_ratio {mask_ratio} masks {num_masked} of {window_size**2} patches of a window: "
            "nothing to learn; choose a ratio in (0, 1]"
        )


def sample_windows(
    batch_size: int,
    grid_size: int | tuple[int, int],
    window_size: int = 7,
    num_windows: int = 4,
    mask_ratio: float = 0.8,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> WindowSample:
    """Samples windows and masks (LoMaR section 3: uniform locations, random masking per window).

    Every image gets its own independent windows, uniform over all positions inside the grid; in
    each window exactly ``int(window_size ** 2 * mask_ratio)`` patches are masked.

    Args:
        batch_size: B.
        grid_size: Patch grid (H, W), or one int for a square.
        window_size: k.
        num_windows: Windows per image; they may overlap.
        mask_ratio: Share of masked patches in a window.
        generator: Source of randomness; it must live on ``device``.
        device: Where the result lives.

    Raises:
        ValueError: the window does not fit the grid, or nothing would be masked.
    """
    H, W = to_pair(grid_size)
    check_windows((H, W), window_size, num_windows, mask_ratio)
    M, k = batch_size * num_windows, window_size
    options = {"generator": generator, "device": device}
    top = torch.randint(0, H - k + 1, (M, 1, 1), **options)
    left = torch.randint(0, W - k + 1, (M, 1, 1), **options)
    side = torch.arange(k, device=device)
    patch_ids = (top + side[:, None]) * W + left + side[None, :]  # (M, k, k)
    # Ranking noise picks a fixed number of patches per window, without replacement.
    rank = torch.rand(M, k * k, **options).argsort(dim=1).argsort(dim=1)
    image_ids = torch.arange(batch_size, device=device).repeat_interleave(num_windows)
    return WindowSample(image_ids, patch_ids.flatten(1), rank < int(k * k * mask_ratio))
