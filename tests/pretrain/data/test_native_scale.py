"""Large images at their own scale: the right pixels, by whichever way they are read."""

import logging
import random

import numpy as np
import pytest
import torch
from helpers.common import TINY_PRETRAIN, tool_args
from helpers.small_models import SMALL, randomise
from PIL import Image

from lomar_det.data import regions
from lomar_det.data.stream import seeded
from lomar_det.errors import UserError
from lomar_pretrain import MAE, LoMaR
from lomar_pretrain.data import native_scale
from lomar_pretrain.data.native_scale import (
    Part,
    Place,
    RegionList,
    ViewsAtScale,
    views_as_images,
    warn_of_shrinking,
)
from lomar_pretrain.data.sources import ImageList, find_images
from lomar_pretrain.models.window_sampling import WindowSample
from lomar_pretrain.runs import pretrain
from lomar_pretrain.runs.show_data import visualize_pretraining_data

SIZE = (640, 400)  # (width, height)


def make_lomar(**settings) -> LoMaR:
    usual = {"img_size": 112, "window_size": 3, "decoder_embed_dim": 16, "decoder_num_heads": 2}
    return randomise(LoMaR(**(SMALL | usual | settings)))


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch):
    monkeypatch.setattr(regions, "LEAST_MEGAPIXELS", 0.0)
    regions._open.cache_clear()


def noise_image(size=SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


@pytest.fixture
def tiled(tmp_path):
    path = tmp_path / "tiled.tif"
    write_tiled(path, noise_image())
    return path


def write_tiled(path, pixels, levels=()):
    import rasterio.enums

    height, width, count = pixels.shape
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    size = {"width": width, "height": height, "count": count, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **size, **layout) as file:
        file.write(pixels.transpose(2, 0, 1))
        if levels:
            file.build_overviews(levels, rasterio.enums.Resampling.average)


def find(pixels: np.ndarray, view: torch.Tensor) -> bool:
    """Whether a view (3, h, w) is a cut-out of the image; its first pixels say where."""
    first = view[:, 0, :2].T.numpy()
    rows, columns = np.nonzero(
        (pixels[:, :-1] == first[0]).all(-1) & (pixels[:, 1:] == first[1]).all(-1)
    )
    cuts = (
        pixels[y : y + view.shape[1], x : x + view.shape[2]]
        for y, x in zip(rows, columns, strict=True)
    )
    return any(np.array_equal(cut.transpose(2, 0, 1), view) for cut in cuts)


@pytest.mark.parametrize("kind", ["tif", "png"])
def test_views_are_the_images_own_pixels(tmp_path, tiled, kind):
    pixels = noise_image()
    path = tiled if kind == "tif" else tmp_path / "x.png"
    if kind == "png":
        Image.fromarray(pixels).save(path)
    views = ViewsAtScale(make_lomar(num_windows=3), region_size=200)
    side = views.view[0]
    for seed in range(5):
        with seeded(seed):
            found, noise, redrawn = views(Part(path, 0))
        assert found.shape == (3, 3, side, side) and noise.shape == views.noise_shape
        assert all(find(pixels, view) for view in found) and redrawn == 0


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.0, 3.0), (4.0, 4.0), (4.0, 8.0)])
@pytest.mark.parametrize("levels", [(), (2, 4), (4,)], ids=str)
@pytest.mark.parametrize("suffix", ["tif", "svs"])
def test_views_read_singly_are_those_cut_from_the_region(
    tmp_path, monkeypatch, suffix, levels, scale
):
    """To the bit: which way is cheaper must not change a run."""
    path = tmp_path / f"x.{suffix}"
    write_tiled(path, noise_image(), levels)
    views = ViewsAtScale(make_lomar(num_windows=4), 320, scale, flip=True)
    for seed in range(5):
        read = {}
        for singly in (True, False):
            monkeypatch.setattr(Place, "prefers_views", lambda *_, singly=singly: singly)
            with seeded(seed):
                read[singly] = views(Part(path, 0))
        for one, other in zip(read[True], read[False], strict=True):
            assert torch.equal(one, other)


def test_views_lie_in_one_region(tiled):
    views = ViewsAtScale(make_lomar(num_windows=1), region_size=150, scale=(1.0, 2.0))
    for seed in range(20):
        random.seed(seed)
        place, _ = views.open_region(tiled)
        top, left, height, width = place.region
        assert 0 <= top <= top + height <= SIZE[1] and 0 <= left <= left + width <= SIZE[0]
        y, x, rows, columns = place.draw_box()
        assert top <= y <= y + rows <= top + height and left <= x <= x + columns <= left + width
        assert views.view[0] <= rows == columns <= 2 * views.view[0]
    small = Place.draw((20, 30), views.view, 150, (1.0, 1.0))  # an image smaller than a view
    assert small.side[0] <= 20 and small.region[2:] <= (20, 30)


def test_small_boxes_of_large_files_are_read_singly():
    near = Place((0, 0, 1792, 1792), (112, 112))
    assert near.prefers_views((256, 256), 4)
    assert not near.prefers_views((256, 256), 50)
    assert not Place((0, 0, 160, 160), (112, 112)).prefers_views((256, 256), 4)
    assert not near.prefers_views((9000, 9000), 4)  # stored as a whole


@pytest.mark.parametrize("decoder_depth", [0, 1])
def test_windows_as_images_give_the_loss_of_windows_in_an_image(decoder_depth):
    """The literal twin: the same windows in the whole image, gradients included."""
    torch.manual_seed(0)
    model = make_lomar(num_windows=2, decoder_depth=decoder_depth)
    p, k = model.patch_size, model.window_size
    grid, B = (8, 9), 2
    images = torch.randn(B, 3, grid[0] * p, grid[1] * p)
    noise = torch.rand(B, *model.noise_shape)
    corners = [(0, 0), (1, 2), (4, 3), (grid[0] - k, grid[1] - k)]
    views = torch.stack(
        [
            images[i // 2, :, y * p : (y + k) * p, x * p : (x + k) * p]
            for i, (y, x) in enumerate(corners)
        ]
    ).unflatten(0, (B, 2))
    ours = model(views_as_images(views, noise)[0], noise=views_as_images(views, noise)[1])
    ids = [[(y + r) * grid[1] + x + c for r in range(k) for c in range(k)] for y, x in corners]
    image_ids = torch.tensor([0, 0, 1, 1])
    whole = model(images, WindowSample(image_ids, torch.tensor(ids), ours.windows.mask))
    torch.testing.assert_close(ours.loss, whole.loss, rtol=0, atol=1e-6)
    names, weights = zip(
        *((n, w) for n, w in model.named_parameters() if w.requires_grad), strict=True
    )
    grads = [torch.autograd.grad(out.loss, weights, allow_unused=True) for out in (ours, whole)]
    for name, one, other in zip(names, *grads, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)


def test_an_epoch_sees_images_by_their_area(tmp_path):
    for i, side in enumerate((100, 200, 300, 20)):
        Image.fromarray(noise_image((side, side))).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"no image")
    parts = RegionList(find_images(tmp_path), 100)
    names = [str(part)[-5] for part in parts]
    assert names == ["0", *"1111", *"222222222", "3", "4"]
    assert [part.number for part in parts][1:5] == [0, 1, 2, 3]
    assert sorted(parts.permutation(np.random.default_rng(0))) == list(range(16))


def test_empty_views_are_drawn_again(tmp_path):
    pixels = noise_image((400, 400))
    pixels[:, :200] = 7
    pixels[:, :200] += np.random.default_rng(0).integers(0, 3, (400, 200, 3), dtype=np.uint8)
    write_tiled(tmp_path / "x.tif", pixels)
    model, part = make_lomar(num_windows=4), Part(tmp_path / "x.tif", 0)
    counts = {}
    for max_empty in (0.5, 1.0):
        views = ViewsAtScale(model, 400, max_empty=max_empty)
        seen = []
        for seed in range(20):
            with seeded(seed):
                found, _, redrawn = views(part)
            seen.append(int(redrawn))
            for view in found:
                assert max_empty == 1 or (view > 20).any()
        counts[max_empty] = sum(seen)
    assert counts[0.5] > 20 and counts[1.0] == 0


def test_mae_sees_an_image(tiled):
    model = MAE(img_size=64, patch_size=16, embed_dim=32, depth=1, num_heads=2, decoder_depth=1,
                decoder_embed_dim=32, decoder_num_heads=2)  # fmt: skip
    found, noise, _ = ViewsAtScale(model, 64)(Part(tiled, 0))
    assert found.shape == (1, 3, 64, 64) and find(noise_image(), found[0])
    images, numbers = views_as_images(found[None], noise[None])
    assert model(images / 255, numbers).loss.isfinite()


def test_absolute_positions_are_refused():
    with pytest.raises(UserError, match="abs_pos"):
        ViewsAtScale(make_lomar(abs_pos=True, rel_pos=False), 200)


def test_a_run_on_a_large_image(tmp_path):
    """From files to weights, resumed in the middle: the same weights as in one go."""
    images = tmp_path / "images"
    images.mkdir()
    pixels = noise_image()
    pixels[:, :300] = 0
    write_tiled(images / "x.tif", pixels)
    opts = [*TINY_PRETRAIN, f"data.path={images}", "data.region_size=100", "data.scale=[1,2]"]
    opts += ["model.decoder_depth=1", "model.decoder_embed_dim=32", "model.decoder_num_heads=2"]
    opts += ["train.checkpoint_epochs=1", "train.epochs=3", "train.picture_epochs=3"]
    weights = []
    for name in ("once", "twice"):
        out = f"train.output_dir={tmp_path / name}"
        args = tool_args("pretrain/lomar_vit_tiny.py", *opts, out)
        if name == "twice":
            pretrain.main(args)
            for path in (tmp_path / name).glob("*_final.pth"):
                path.unlink()
            last = sorted((tmp_path / name).glob("model_*.pth"))
            last[-1].unlink()
            (tmp_path / name / "last_checkpoint").write_text(last[-2].name)
            args.resume = True
        weights.append(torch.load(pretrain.main(args), weights_only=True)["model"])
    assert "data.max_empty" in (tmp_path / "once" / "log.txt").read_text()
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    with Image.open(tmp_path / "once" / "reconstruction.png") as sheet:
        assert sheet.width > 100


def test_its_data_are_drawn(tmp_path, tiled):
    from lomar_det.config.lazy import load_config

    path = tool_args("pretrain/lomar_vit_tiny.py").config_file
    cfg = load_config(path, [*TINY_PRETRAIN, f"data.path={tiled}", "data.region_size=100"])
    (drawn,) = visualize_pretraining_data(cfg, tmp_path / "out", num=1)
    with Image.open(drawn) as image:
        assert image.size == (2 * 48, 48)  # two windows of three patches


def test_crops_that_shrink_are_warned_of(tmp_path, tiled, caplog):
    images = ImageList([str(tiled)])
    with caplog.at_level(logging.WARNING, logger=native_scale.__name__):
        warn_of_shrinking(images, (0.2, 1.0), (224, 224))
        assert not caplog.records
        warn_of_shrinking(images, (0.2, 1.0), (32, 32))
    assert "data.region_size" in caplog.text
