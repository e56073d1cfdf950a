"""LoMaR: local masked reconstruction (arXiv 2206.00790, section 3), and its asymmetric form.

As in the paper, mask tokens go through the whole encoder, and a linear layer predicts pixels. The
asymmetric form (``decoder_depth`` above 0) is not the paper's: windows, masks and targets are the
same, but the encoder sees visible patches alone, and a small decoder, which is thrown away after
pretraining, sees the mask tokens. That is MAE's asymmetry inside LoMaR's windows.

Shapes: B images, M windows, k window side, K = k * k patches of a window, n of them visible,
C embed_dim, p patch size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lomar_det.config.rules import FLAG, check_settings, whole
from lomar_det.layers import TokenGrid, grid_size

from .decoder import EncoderWithDecoder
from .encoder import VisionTransformerEncoder, takes_arguments_of
from .window_sampling import WindowSample, check_windows, noise_per_window, windows_from_noise


@dataclass
class LoMaROutput:
    """What `LoMaR.forward` returns.

    Attributes:
        loss: Scalar, mean squared error over masked patches.
        pred: (M, K, p * p * 3) predicted pixels, in the (normalised) space of the target.
        windows: The windows that were used.
    """

    loss: Tensor
    pred: Tensor
    windows: WindowSample


class LoMaR(EncoderWithDecoder):
    """Reconstructs the masked patches of small windows.

    With ``decoder_depth=0``, as in the paper: a plain encoder and a linear head; state-dict names
    and shapes are those of the released LoMaR checkpoint. With more it is asymmetric LoMaR: the
    encoder sees visible patches alone, which costs a quarter of the operations.

    Args:
        *args, **kwargs: The encoder's, see `VisionTransformerEncoder`.
        window_size: Side of a window in patches.
        num_windows: Windows per image.
        mask_ratio: Share of masked patches in a window.
        norm_pix_loss: Reconstruct pixels normalised per patch.
        decoder_depth: Blocks of the decoder; 0 is the paper's LoMaR.
        decoder_embed_dim, decoder_num_heads: The decoder, if there is one.
    """

    @takes_arguments_of(VisionTransformerEncoder)
    def __init__(
        self,
        *args,
        window_size: int = 7,
        num_windows: int = 4,
        mask_ratio: float = 0.8,
        norm_pix_loss: bool = True,
        decoder_depth: int = 0,
        decoder_embed_dim: int = 256,
        decoder_num_heads: int = 8,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        check_windows(self.grid, window_size, num_windows, mask_ratio)
        check_settings(locals(), {"norm_pix_loss": FLAG, "decoder_depth": whole(0)})
        self.window_size = window_size
        self.num_windows = num_windows
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.architecture |= {
            "method": "lomar",
            "window_size": window_size,
            "num_windows": num_windows,
            "mask_ratio": mask_ratio,
            "norm_pix_loss": norm_pix_loss,
        }
        self.is_asymmetric = decoder_depth > 0
        if self.is_asymmetric:
            count = window_size**2
            if int(count * mask_ratio) == count:
                raise ValueError(
                    f"mask_ratio {mask_ratio} masks all {count} patches of a window, and the "
                    "encoder of asymmetric LoMaR sees visible ones alone: choose a lower one"
                )
            window = (window_size, window_size)
            self.add_decoder(window, decoder_embed_dim, decoder_depth, decoder_num_heads)
        else:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
            self.encoder_pred = nn.Linear(self.embed_dim, self.patch_size**2 * 3)
        self.init_weights()
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the random numbers that decide an image's windows and masks."""
        return (self.num_windows, noise_per_window(self.window_size))

    def forward(
        self, images: Tensor, windows: WindowSample | None = None, noise: Tensor | None = None
    ) -> LoMaROutput:
        """Reconstructs windows of a batch.

        Args:
            images: (B, 3, height, width), normalised, multiples of the patch size.
            windows: Which windows; made from ``noise`` if None. Asymmetric LoMaR wants as many
                masked patches in each.
            noise: (B, *noise_shape), uniform in [0, 1); drawn here if None.
        """
        grid, count = grid_size(images.shape[2:], self.patch_size), self.window_size**2
        num_visible = count - int(count * self.mask_ratio)
        if windows is None:
            if noise is None:
                noise = torch.rand(images.shape[0], *self.noise_shape, device=images.device)
            windows = windows_from_noise(noise, grid, self.window_size, self.mask_ratio)
        elif self.is_asymmetric:
            num_visible = _count_visible(windows)
        patches = self.window_patches(images, windows)  # (M, K, p * p * 3)
        if self.is_asymmetric:
            pred = self.predict_from_visible(patches, windows, grid, num_visible)
        else:
            x = self.embed_window(patches, windows, grid, masked=True)
            x = self.forward_blocks(x, self.window_grid)
            pred = self.encoder_pred(self.norm(x)[:, 1:])
        return LoMaROutput(self.reconstruction_loss(pred, patches, windows.mask), pred, windows)

    @property
    def window_grid(self) -> TokenGrid:
        return TokenGrid(self.window_size, self.window_size, cls_token=True)

    def predict_from_visible(
        self, patches: Tensor, windows: WindowSample, grid: tuple[int, int], num_visible: int
    ) -> Tensor:
        """Asymmetric LoMaR: pixels of windows (M, K, p * p * 3), predicted for all patches."""
        # Visible patches come first, in row-major order.
        order = windows.mask.long().argsort(dim=1, stable=True)  # (M, K)
        visible = order[:, :num_visible]  # (M, n)
        positions = None
        if self.abs_pos:
            positions = self.patch_positions(grid)[0][windows.patch_ids.gather(1, visible)]
        return self.decode(self.encode_visible(patches, visible, positions), order.argsort(dim=1))

    def encode_windows(
        self, images: Tensor, windows: WindowSample, masked: bool = False, cls_token: bool = True
    ) -> Tensor:
        """Features of windows before the final norm: (M, [1 +] K, C)."""
        grid = grid_size(images.shape[2:], self.patch_size)
        patches = self.window_patches(images, windows)
        x = self.embed_window(patches, windows, grid, masked, cls_token)
        return self.forward_blocks(x, TokenGrid(self.window_size, self.window_size, cls_token))

    def window_patches(self, images: Tensor, windows: WindowSample) -> Tensor:
        """Pixels of the windows' patches: (M, K, p * p * 3). No other pixels are copied."""
        p = self.patch_size
        H, W = grid_size(images.shape[2:], p)
        cells = images.unflatten(3, (W, p)).unflatten(2, (H, p))  # (B, 3, H, p, W, p), a view
        rows, columns = windows.patch_ids // W, windows.patch_ids % W
        patches = cells[windows.image_ids[:, None], :, rows, :, columns]  # (M, K, 3, p, p)
        return patches.permute(0, 1, 3, 4, 2).flatten(2)

    def embed_window(
        self,
        patches: Tensor,
        windows: WindowSample,
        grid: tuple[int, int],
        masked: bool,
        cls_token: bool = True,
    ) -> Tensor:
        """Tokens of the windows, masked ones replaced by the mask token: (M, [1 +] K, C)."""
        x = self.patch_embed.embed_patches(patches)
        if masked:
            x = torch.where(windows.mask[..., None], self.mask_token.to(x.dtype), x)
        if self.abs_pos:
            x = x + self.patch_positions(grid)[0][windows.patch_ids]
        return self.with_cls_token(x) if cls_token else x


def _count_visible(windows: WindowSample) -> int:
    counts = (~windows.mask).sum(dim=1).unique().tolist()
    if len(counts) != 1:
        raise ValueError(
            f"windows have {counts} visible patches: asymmetric LoMaR wants as many in each"
        )
    return counts[0]
