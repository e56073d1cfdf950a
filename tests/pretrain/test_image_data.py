"""Finding and opening pictures of all kinds."""

import numpy as np
import pytest
import torch
from PIL import Image

from lomar_det.errors import UserError
from lomar_pretrain.data import PretrainTransform, denormalize, load_image, normalize
from lomar_pretrain.sources import find_images

PIXELS = np.arange(24 * 16 * 3, dtype=np.uint8).reshape(24, 16, 3)


def test_folders_are_searched_recursively_and_sorted(tmp_path):
    names = ("b.JPG", "sub/deep/a.png", "notes.txt", "c.tif")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["b.JPG", "c.tif", "sub/deep/a.png"]


@pytest.mark.parametrize("make, words", [(False, "does not exist"), (True, "has no pictures")])
def test_missing_and_empty_folders_are_named(tmp_path, make, words):
    folder = tmp_path / "pictures"
    if make:
        folder.mkdir()
    with pytest.raises(UserError, match=f"pictures {words}.*data.path"):
        find_images(folder)


MODES = {
    "jpg": ("RGB", "L", "CMYK"),
    "png": ("RGB", "L", "P", "RGBA", "LA", "1"),
    "tif": ("RGB", "L", "P", "RGBA", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("RGB", "L", "P"),
}


@pytest.mark.parametrize("suffix, mode", [(s, m) for s, modes in MODES.items() for m in modes])
def test_formats_and_modes_become_rgb(tmp_path, suffix, mode):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(PIXELS).convert(mode).save(path)
    image = load_image(path)
    assert image.mode == "RGB" and image.size == (16, 24)


def test_sixteen_bit_keeps_its_range(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    pixels = np.asarray(load_image(tmp_path / "x.png"))
    assert pixels.min() == 0 and pixels.max() == 255 and 120 < pixels.mean() < 135


def test_exif_orientation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").size == (24, 16)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut off"])
def test_broken_pictures_are_named(tmp_path, content):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match="broken.jpg cannot be read"):
        load_image(path)


def test_truncated_picture_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cut.jpg cannot be read"):
        load_image(path)


def test_normalisation_is_undone():
    image = Image.fromarray(PIXELS)
    restored = denormalize(normalize(image)).permute(1, 2, 0) * 255
    torch.testing.assert_close(restored, torch.tensor(PIXELS).float(), atol=0.01, rtol=0)


def test_transform_gives_the_wanted_size(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    assert PretrainTransform((32, 48), flip=True)(tmp_path / "x.png").shape == (3, 32, 48)
