"""What LoMaR and MAE share: visible patches encoded, a small decoder, targets and loss.

The decoder turns the tokens of visible patches into pixels of all, which is MAE's idea.

Shapes: B sequences, K patches of the grid, n of them visible, C embed_dim, D decoder_embed_dim,
p patch size.
"""

import torch
from torch import Tensor, nn

from lomar_det.config.rules import check_settings, whole
from lomar_det.layers import TokenGrid, build_blocks, sincos_pos_embed, subset_buckets

from .encoder import VisionTransformerEncoder

_RULES = {
    "decoder_embed_dim": whole(1),
    "decoder_depth": whole(1),
    "decoder_num_heads": whole(1),
}


class EncoderWithDecoder(VisionTransformerEncoder):
    """The encoder, and a decoder with the names of the released MAE files.

    Subclasses set ``norm_pix_loss``. They call `add_decoder` where their random numbers want it,
    if they have a decoder, and `init_weights` afterwards.
    """

    norm_pix_loss: bool

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

    def encode_visible(self, patches: Tensor, visible: Tensor, positions: Tensor | None) -> Tensor:
        """Encodes some patches of the decoder's grid, and no others.

        Args:
            patches: Pixels (B, K, p * p * 3).
            visible: Ids of patches in the grid (B, n).
            positions: Absolute positions of these patches (B, n, C), for models that have them.

        Returns:
            Normed tokens (B, 1 + n, C), the class token first.
        """
        rows = torch.arange(len(visible), device=visible.device)[:, None]
        x = self.patch_embed.embed_patches(patches[rows, visible])
        if positions is not None:
            x = x + positions
        buckets = subset_buckets(self.decoder_grid, visible) if self.rel_pos else None
        return self.norm(self.forward_blocks(self.with_cls_token(x), self.decoder_grid, buckets))

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

    def targets(self, patches: Tensor) -> Tensor:
        """What to predict for patches (..., p * p * 3), in fp32: pixels, normalised or not."""
        return normalize_patches(patches.float()) if self.norm_pix_loss else patches.float()

    def reconstruction_loss(self, pred: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over the masked patches, in fp32 (LoMaR section 3, MAE section 3)."""
        error = (pred.float() - self.targets(patches)).square().mean(dim=-1)  # (B, K)
        return (error * mask).sum() / mask.sum()


def normalize_patches(patches: Tensor) -> Tensor:
    """Every patch to zero mean and unit (unbiased) variance: (..., p * p * 3)."""
    mean, var = patches.mean(dim=-1, keepdim=True), patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()
