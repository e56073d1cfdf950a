"""Which patches LoMaR looks at: a few random square windows per image, most of each masked.

Shapes: B images, H x W patch grid, k window side in patches, M = B * num_windows windows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lomar_det.config.rules import check_settings, number, whole
from lomar_det.layers import to_pair

_RULES = {
    "window_size": whole(1),
    "num_windows": whole(1),
    "mask_ratio": number("(0, 1]"),
}


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
    check_settings(locals(), _RULES)
    _check_fits(grid, window_size)
    if int(window_size**2 * mask_ratio) < 1:
        raise ValueError(
            f"mask_ratio {mask_ratio} masks none of the {window_size**2} patches of a window: "
            f"nothing to learn; choose at least 1/{window_size**2}"
        )


def _check_fits(grid: tuple[int, int], window_size: int) -> None:
    if window_size > min(grid):
        raise ValueError(
            f"window_size {window_size} does not fit the {grid[0]}x{grid[1]} patch grid: choose "
            f"1 to {min(grid)}, or a larger image"
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
    check_windows(to_pair(grid_size), window_size, num_windows, mask_ratio)
    shape = (batch_size, num_windows, noise_per_window(window_size))
    noise = torch.rand(shape, generator=generator, device=device)
    return windows_from_noise(noise, grid_size, window_size, mask_ratio)


def noise_per_window(window_size: int) -> int:
    """Random numbers that one window takes: its row, its column, and one per patch to mask."""
    return 2 + window_size**2


def windows_from_noise(
    noise: Tensor, grid_size: int | tuple[int, int], window_size: int, mask_ratio: float
) -> WindowSample:
    """Turns random numbers into windows, so that the numbers can travel with each image.

    Windows are then part of the sample: they do not depend on how a batch is split over processes
    and passes, nor on the device.

    Args:
        noise: (B, num_windows, 2 + k * k) fp32, uniform in [0, 1).
        grid_size: As in `sample_windows`. It is checked here, because it may change from step to
            step.
        window_size, mask_ratio: As in `sample_windows`. `check_windows` has checked them where they
            were set.

    Raises:
        ValueError: the window does not fit the grid.
    """
    (H, W), k = to_pair(grid_size), window_size
    B, num_windows = noise.shape[:2]
    _check_fits((H, W), k)
    noise = noise.reshape(B * num_windows, -1, 1)
    top = (noise[:, :1] * (H - k + 1)).long()  # (M, 1, 1)
    left = (noise[:, 1:2] * (W - k + 1)).long()
    side = torch.arange(k, device=noise.device)
    patch_ids = (top + side[:, None]) * W + left + side[None, :]  # (M, k, k)
    # Ranking noise picks a fixed number of patches per window, without replacement.
    rank = noise[:, 2:, 0].argsort(dim=1).argsort(dim=1)
    image_ids = torch.arange(B, device=noise.device).repeat_interleave(num_windows)
    return WindowSample(image_ids, patch_ids.flatten(1), rank < int(k * k * mask_ratio))
