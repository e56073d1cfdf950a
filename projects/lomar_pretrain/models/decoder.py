"""A small decoder that turns the tokens of visible patches into pixels of all: MAE's idea.

Shapes: B sequences, K patches of the grid, n of them visible, C embed_dim, D decoder_embed_dim,
p patch size.
"""

import torch
from torch import Tensor, nn

from lomar_det.config.rules import check_settings, whole
from lomar_det.layers import TokenGrid, build_blocks, sincos_pos_embed

from .encoder import VisionTransformerEncoder

_RULES = {
    "decoder_embed_dim": whole(1),
    "decoder_depth": whole(1),
    "decoder_num_heads": whole(1),
}


class EncoderWithDecoder(VisionTransformerEncoder):
    """The encoder, and a decoder with the names of the released MAE files.

    Subclasses call `add_decoder` where their random numbers want it, then `init_decoder`.
    """

    def add_decoder(
        self,
        grid: tuple[int, int],
        decoder_embed_dim: int,
        decoder_depth: int,
        decoder_num_heads: int,
    ) -> None:
        """Adds the modules.

        Args:
            grid: Patches that the decoder sees at once.
            decoder_embed_dim, decoder_depth, decoder_num_heads: The decoder.

        Raises:
            ValueError: an impossible setting.
        """
        settings = {
            "decoder_embed_dim": decoder_embed_dim,
            "decoder_depth": decoder_depth,
            "decoder_num_heads": decoder_num_heads,
        }
        check_settings(settings, _RULES)
        if decoder_embed_dim % decoder_num_heads:
            raise ValueError(
                f"decoder_embed_dim {decoder_embed_dim} is not a multiple of decoder_num_heads "
                f"{decoder_num_heads}"
            )
        self.architecture |= settings
        self.decoder_grid = TokenGrid(*grid, cls_token=True)
        self.decoder_embed = nn.Linear(self.embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        if self.abs_pos:
            positions = sincos_pos_embed(decoder_embed_dim, grid)
            self.decoder_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.decoder_blocks = build_blocks(
            decoder_depth,
            dim=decoder_embed_dim,
            num_heads=decoder_num_heads,
            **self.block_settings,
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, self.patch_size**2 * 3)

    def decode(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Pixels of all patches, from the normed tokens of the visible ones.

        Args:
            latent: (B, 1 + n, C), the class token first.
            restore: (B, K), for each patch its place among visible patches, then masked ones.

        Returns:
            (B, K, p * p * 3).
        """
        x = self.decoder_embed(latent)
        B, K = restore.shape
        fill = self.mask_token.to(x.dtype).expand(B, K + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], fill], dim=1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1)  # (B, 1 + K, D)
        if self.abs_pos:
            x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x, self.decoder_grid)
        return self.decoder_pred(self.decoder_norm(x)[:, 1:])
