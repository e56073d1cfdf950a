"""MAE: masked autoencoders (He et al., CVPR 2022), with absolute positions or iRPE.

Shapes: B images, L = H * W patches, n visible patches, C embed_dim, p patch size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lomar_det.config.rules import FLAG, check_settings, number
from lomar_det.layers import grid_size, patchify

from .decoder import EncoderWithDecoder
from .encoder import VisionTransformerEncoder, takes_arguments_of

_RULES = {
    "mask_ratio": number("(0, 1)"),
    "norm_pix_loss": FLAG,
}


@dataclass
class MAEOutput:
    """Scalar loss, pred (B, L, p * p * 3) and mask (B, L), True = masked."""

    loss: Tensor
    pred: Tensor
    mask: Tensor


class MAE(EncoderWithDecoder):
    """Encodes the visible patches of the whole image and reconstructs the rest with a decoder.

    The encoder sees an arbitrary subset of the grid. With ``rel_pos``, its iRPE buckets come from
    the coordinates of the visible patches. The decoder has iRPE as well, on the whole grid: without
    absolute positions, nothing else distinguishes its mask tokens. State-dict names are those of
    the released MAE files.

    Args:
        *args, **kwargs: The encoder's, see `VisionTransformerEncoder`. Absolute positions are the
            default here.
        decoder_embed_dim, decoder_depth, decoder_num_heads: The decoder.
        mask_ratio: Share of masked patches of the image.
        norm_pix_loss: Reconstruct pixels normalised per patch.
    """

    @takes_arguments_of(VisionTransformerEncoder)
    def __init__(
        self,
        *args,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        rel_pos: bool = False,
        abs_pos: bool = True,
        **kwargs,
    ):
        super().__init__(*args, rel_pos=rel_pos, abs_pos=abs_pos, **kwargs)
        check_settings(locals(), _RULES)
        num_patches = self.grid[0] * self.grid[1]
        num_visible = int(num_patches * (1 - mask_ratio))
        if not 0 < num_visible < num_patches:
            raise ValueError(
                f"mask_ratio {mask_ratio} leaves {num_visible} of {num_patches} patches visible: "
                "some must be visible, and some masked"
            )
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.architecture |= {
            "method": "mae",
            "mask_ratio": mask_ratio,
            "norm_pix_loss": norm_pix_loss,
        }
        self.add_decoder(self.grid, decoder_embed_dim, decoder_depth, decoder_num_heads)
        self.init_weights()
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the random numbers that decide an image's mask."""
        return (self.grid[0] * self.grid[1],)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> MAEOutput:
        """Reconstructs a batch.

        Args:
            images: (B, 3, height, width) of the model's ``img_size``, normalised.
            noise: (B, L); the patches of lowest noise stay visible. Drawn here if None.
        """
        if grid_size(images.shape[2:], self.patch_size) != self.grid:
            raise ValueError(
                f"MAE was built for images of {self.img_size}, got {tuple(images.shape[2:])}"
            )
        B, L = images.shape[0], self.grid[0] * self.grid[1]
        noise = torch.rand(B, L, device=images.device) if noise is None else noise
        order = noise.argsort(dim=1)
        restore = order.argsort(dim=1)  # (B, L): rank of every patch
        num_visible = int(L * (1 - self.mask_ratio))
        mask = restore >= num_visible
        patches = patchify(images, self.patch_size)
        pred = self.decode(self.encode(patches, order[:, :num_visible]), restore)
        return MAEOutput(self.reconstruction_loss(pred, patches, mask), pred, mask)

    def encode(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Pixels (B, L, p * p * 3) and visible ids (B, n) -> normed tokens (B, 1 + n, C)."""
        positions = self.pos_embed[0, 1:][visible] if self.abs_pos else None
        return self.encode_visible(patches, visible, positions)
