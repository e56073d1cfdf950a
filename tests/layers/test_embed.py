"""Patches and positions."""

import pytest
import torch

from lomar_det.layers import (
    PatchEmbed,
    grid_size,
    patchify,
    resize_pos_embed,
    sincos_pos_embed,
    unpatchify,
)


def test_patchify_lays_pixels_out_row_column_channel():
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    patch = images[1, :, 4:8, 8:12]  # row 1, column 2: patch 5
    assert torch.equal(patches[1, 5], patch.permute(1, 2, 0).flatten())
    assert torch.equal(unpatchify(patches, (2, 3), 4), images)


def test_embedding_cut_patches_is_the_convolution():
    embed, images = PatchEmbed(4, 3, 10).double(), torch.randn(2, 3, 8, 12).double()
    torch.testing.assert_close(embed.embed_patches(patchify(images, 4)), embed(images))


@pytest.mark.parametrize("size", [30, (32, 33), 0])
def test_images_that_are_not_whole_patches_are_refused(size):
    with pytest.raises(ValueError, match="patch size 16"):
        grid_size(size, 16)


def test_sincos_is_the_formula():
    embed = sincos_pos_embed(8, (2, 3))
    assert embed.shape == (1, 7, 8) and not embed[0, 0].any()
    row, column = 1, 2
    omega = torch.tensor([1.0, 0.01])
    expected = torch.cat([f(c * omega) for c in (column, row) for f in (torch.sin, torch.cos)])
    torch.testing.assert_close(embed[0, 1 + row * 3 + column], expected)


def test_resizing_positions_keeps_them_at_their_own_size():
    embed = torch.randn(1, 17, 8)
    assert torch.equal(resize_pos_embed(embed, (4, 4)), embed[:, 1:])
    assert resize_pos_embed(embed, (3, 7)).shape == (1, 21, 8)
    with pytest.raises(ValueError, match="square"):
        resize_pos_embed(torch.randn(1, 13, 8), (2, 6))
