"""LoMaR as it is usually written: the slow twin of `LoMaR` in tests and benchmarks."""

import torch
from torch import Tensor

from lomar_det.layers import TokenGrid, grid_size, patchify

from ..models.lomar import LoMaR, LoMaROutput
from ..models.window_sampling import WindowSample, windows_from_noise


class UsualLoMaR(LoMaR):
    """Embeds the whole image and cuts the windows out of its tokens; same weights, same numbers.

    Build it with ``attention_backend="eager"``, the gathered N x N bias that goes with it.
    """

    def forward(
        self, images: Tensor, windows: WindowSample | None = None, noise: Tensor | None = None
    ) -> LoMaROutput:
        """See `LoMaR.forward`."""
        grid = grid_size(images.shape[2:], self.patch_size)
        if windows is None:
            if noise is None:
                noise = torch.rand(images.shape[0], *self.noise_shape, device=images.device)
            windows = windows_from_noise(noise, grid, self.window_size, self.mask_ratio)
        cut = windows.image_ids[:, None], windows.patch_ids
        tokens = self.patch_embed(images)  # (B, H * W, C)
        x = torch.where(windows.mask[..., None], self.mask_token.to(tokens.dtype), tokens[cut])
        if self.abs_pos:
            x = x + self.patch_positions(grid)[0][windows.patch_ids]
        square = TokenGrid(self.window_size, self.window_size, cls_token=True)
        x = self.forward_blocks(self.with_cls_token(x), square)
        pred = self.encoder_pred(self.norm(x)[:, 1:])
        patches = patchify(images, self.patch_size)[cut]
        return LoMaROutput(self.reconstruction_loss(pred, patches, windows.mask), pred, windows)
