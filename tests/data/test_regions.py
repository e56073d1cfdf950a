"""Parts of large images: the same pixels as those of the whole, by every reader."""

import sys

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_origin

from lomar_det.data import regions
from lomar_det.data.images import UnreadableImageError, image_size, load_box, load_image

SIZE = (300, 200)  # (width, height), no multiple of a tile


@pytest.fixture(autouse=True)
def _small_files_count(monkeypatch):
    monkeypatch.setattr(regions, "LEAST_MEGAPIXELS", 0.0)
    regions._open.cache_clear()


def draw(channels: int = 3, dtype="uint8", high: int = 256) -> np.ndarray:
    """Noise with a slope, so that neighbours differ: (channels, height, width)."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, high, (channels, SIZE[1], SIZE[0]))
    return values.astype(dtype)


def few_bright() -> np.ndarray:
    pixels = draw(1, "uint16", 200)
    pixels[0, 33:35, 77:79] = 4000
    return pixels


def write(path, pixels, overviews=(), **options):
    """A tiled TIFF, compressed without loss."""
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64} | options
    options = {"driver": "GTiff", "compress": "deflate"} | options
    palette, alpha = options.pop("palette", None), options.pop("alpha", False)
    count, height, width = pixels.shape
    size = {"width": width, "height": height, "count": count}
    with rasterio.open(path, "w", dtype=pixels.dtype, **size, **options) as file:
        file.write(pixels)
        if palette is not None:
            file.write_colormap(1, palette)
        if alpha:
            file.colorinterp = [*file.colorinterp[:3], ColorInterp.alpha]
        if overviews:
            file.build_overviews(overviews, Resampling.average)
    return path


def boxes(number=20):
    rng = np.random.default_rng(1)
    for _ in range(number):
        top, left = int(rng.integers(SIZE[1])), int(rng.integers(SIZE[0]))
        yield top, left, int(rng.integers(SIZE[1] - top)) + 1, int(rng.integers(SIZE[0] - left)) + 1


@pytest.mark.parametrize("suffix", [".tif", ".svs"])
def test_a_box_has_the_pixels_of_the_whole(tmp_path, suffix):
    """A slide of no particular microscope is a tiled TIFF."""
    pixels = draw()
    path = write(tmp_path / f"x{suffix}", pixels)
    assert type(regions.open_regions(path)).__name__ in ("RasterRegions", "SlideRegions")
    assert image_size(path) == SIZE
    assert (np.asarray(load_image(path)) == pixels.transpose(1, 2, 0)).all()
    for top, left, height, width in boxes():
        box = load_box(path, lambda *size: (top, left, height, width), (999, 999))  # noqa: B023
        expected = pixels[:, top : top + height, left : left + width]
        assert (box == expected.transpose(1, 2, 0)).all()


PALETTE = {"palette": {i: (9 * i, 80 - i, i) for i in range(4)}, "photometric": "palette"}


@pytest.mark.parametrize(
    "pixels, options",
    [
        (draw(1), {}),
        (draw(1), {"photometric": "MINISWHITE"}),
        (draw(1, "uint8", 16), {"nbits": 4}),
        (draw(4), {"alpha": True, "photometric": "RGB"}),
        (draw(1, "uint16", 4000), {}),
        (draw(1, "uint16", 60000), {"nodata": 7}),
        (few_bright(), {}),
        (draw(1, "int16", 300) - 100, {"nodata": -100}),
        (draw(1, "float32", 2), {}),
        (draw(1, "float32", 900) - 10, {"nodata": -9.0}),
        (
            draw(1, "uint8", 4),
            PALETTE,
        ),
        (
            draw(1, "uint8", 4),
            {
                "palette": {i: (9 * i, 80 - i, i) for i in range(4)},
                "photometric": "palette",
                "nodata": 2,
            },
        ),
    ],
    ids=[
        *("grey", "white is 0", "4 bit", "alpha", "12 bit", "16 bit", "few bright", "negative"),
        *("0 to 1", "float", "palette", "palette with nodata"),
    ],
)
def test_every_kind_of_pixel_is_that_of_pillow(tmp_path, monkeypatch, pixels, options):
    path = write(tmp_path / "x.tif", pixels, **options)
    ours = np.asarray(load_image(path)).astype(int)
    monkeypatch.setattr(regions, "LEAST_MEGAPIXELS", 99.0)
    regions._open.cache_clear()
    assert abs(ours - np.asarray(load_image(path))).max() <= ("alpha" in options)  # rounding


def test_many_channels_give_the_first_three(tmp_path):
    pixels = draw(6)
    box = load_box(write(tmp_path / "x.tif", pixels), lambda *_: (0, 0, 50, 60), (50, 60))
    assert (box == pixels[:3, :50, :60].transpose(1, 2, 0)).all()


@pytest.mark.parametrize("suffix", [".tif", ".svs"])
def test_a_reduced_level_is_read_where_it_is_enough(tmp_path, suffix):
    pixels = draw().repeat(4, axis=1).repeat(4, axis=2)  # each pixel four times
    path = write(tmp_path / f"x{suffix}", pixels, overviews=(2, 4))
    for enough, level in ((150, 4), (200, 4), (201, 2), (401, 1)):
        box = load_box(path, lambda *_: (0, 0, 800, 1200), (enough, enough))
        assert box.shape == (800 // level, 1200 // level, 3)
        assert (box == pixels[:, ::level, ::level].transpose(1, 2, 0)).all()


@pytest.mark.parametrize("suffix", [".tif", ".svs"])
@pytest.mark.parametrize("levels", [(), (16,)])
def test_reading_is_bounded_where_no_level_is_near(tmp_path, suffix, levels):
    """A whole slide as an overview: not all of its pixels at once."""
    pixels = draw().repeat(4, axis=1).repeat(4, axis=2)
    path = write(tmp_path / f"x{suffix}", pixels, levels)
    box = load_box(path, lambda *_: (0, 0, 800, 1200), (200, 300))
    assert abs(box.astype(int) - draw().transpose(1, 2, 0)).max() <= 1


def test_a_box_outside_is_refused(tmp_path):
    """A file that has shrunk since it was looked at gives no other pixels instead."""
    for suffix in (".tif", ".svs"):
        path = write(tmp_path / f"x{suffix}", draw())
        with pytest.raises(UnreadableImageError, match="not inside"):
            load_box(path, lambda *_: (150, 250, 100, 100), (100, 100))


def test_without_levels_pixels_are_averaged(tmp_path):
    pixels = draw().repeat(4, axis=1).repeat(4, axis=2)
    box = load_box(write(tmp_path / "x.tif", pixels), lambda *_: (40, 80, 400, 400), (100, 100))
    assert (box == pixels[:, 40:440:4, 80:480:4].transpose(1, 2, 0)).all()


def test_resolution_and_block_are_those_of_the_file(tmp_path):
    place = {"transform": from_origin(500, 900, 0.3, 0.3), "crs": "EPSG:32612"}
    found = regions.open_regions(write(tmp_path / "x.tif", draw(), **place))
    assert (found.size, found.block, found.resolution) == (SIZE, (64, 64), 0.3)
    assert regions.open_regions(write(tmp_path / "y.tif", draw())).resolution is None
    assert regions.open_regions(write(tmp_path / "z.svs", draw())).block == (64, 64)


def test_jpeg_2000_and_vrt(tmp_path):
    pixels = draw()
    options = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES", "compress": None}
    write(tmp_path / "x.jp2", pixels, tiled=None, **options)
    write(tmp_path / "x.tif", pixels)
    rasterio.shutil.copy(tmp_path / "x.tif", tmp_path / "x.vrt", driver="VRT")
    for name in ("x.jp2", "x.vrt"):
        assert (np.asarray(load_image(tmp_path / name)) == pixels.transpose(1, 2, 0)).all()


def test_a_damaged_part_is_named_and_others_are_read(tmp_path):
    path = write(tmp_path / "x.tif", draw())
    with rasterio.open(path) as file:
        offset = int(file.tags(1, ns="TIFF")["BLOCK_OFFSET_1_1"]) if file.tags(1, ns="TIFF") else 0
    content = bytearray(path.read_bytes())
    place = offset or len(content) // 2
    content[place : place + 2000] = b"\xff" * 2000
    path.write_bytes(content)
    failed = 0
    for top in range(0, 192, 64):
        for left in range(0, 256, 64):
            try:
                load_box(path, lambda *_: (top, left, 8, 8), (8, 8))  # noqa: B023
            except UnreadableImageError as error:
                assert str(path) in str(error)
                failed += 1
    assert 0 < failed < 5


def test_a_file_that_was_replaced_is_opened_again(tmp_path):
    path = write(tmp_path / "x.tif", draw())
    load_image(path)
    write(path, 255 - draw()[:, :100])
    assert image_size(path) == (300, 100)
    assert (np.asarray(load_image(path)) == 255 - draw()[:, :100].transpose(1, 2, 0)).all()


def test_small_files_do_not_close_large_ones(tmp_path, monkeypatch):
    path = write(tmp_path / "large.tif", draw())
    monkeypatch.setattr(regions, "LEAST_MEGAPIXELS", 0.01)
    opened = regions.open_regions(path)
    for number in range(20):
        small = write(tmp_path / f"{number}.tif", draw()[:, :16, :16], tiled=False, blockxsize=16)
        assert regions.open_regions(small) is None
    assert regions.open_regions(path) is opened


def test_headers_that_lie_are_refused(tmp_path):
    """Sizes beyond what the file holds, and nothing behind a header."""
    path = write(tmp_path / "x.tif", draw(), sparse_ok=True)
    whole = path.read_bytes()
    for name, content in {"cut": whole[: len(whole) // 3], "head": whole[:8], "none": b""}.items():
        bad = tmp_path / f"{name}.tif"
        bad.write_bytes(content)
        with pytest.raises(UnreadableImageError, match=bad.name):
            load_box(bad, lambda *_: (100, 200, 90, 90), (90, 90))


def test_too_large_for_the_whole_is_refused_but_not_its_parts(tmp_path):
    pixels = draw()
    path = write(tmp_path / "x.tif", pixels)
    with pytest.raises(UnreadableImageError, match="0.01 megapixels"):
        load_image(path, max_megapixels=0.01)
    box = load_box(path, lambda *_: (0, 0, 9, 9), (9, 9), max_megapixels=0.01)
    assert (box == pixels[:, :9, :9].transpose(1, 2, 0)).all()


def test_a_file_in_one_strip_is_refused_with_the_remedy(tmp_path, monkeypatch):
    from lomar_det.data.regions import raster

    path = write(tmp_path / "x.tif", draw(), tiled=False, blockxsize=None, blockysize=200)
    monkeypatch.setattr(raster, "MOST_BLOCK_MEGAPIXELS", 0.01)
    with pytest.raises(UnreadableImageError, match="rio convert"):
        load_box(path, lambda *_: (0, 0, 9, 9), (9, 9))


def test_a_missing_reader_is_named(tmp_path, monkeypatch):
    for package in ("rasterio", "openslide"):
        monkeypatch.setitem(sys.modules, package, None)
    for module in ("raster", "slides"):
        monkeypatch.delitem(sys.modules, f"lomar_det.data.regions.{module}", raising=False)
    for suffix in (".jp2", ".svs"):
        (tmp_path / f"x{suffix}").write_bytes(b"anything")
        with pytest.raises(UnreadableImageError, match="lomar-det.large"):
            load_image(tmp_path / f"x{suffix}")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.tif")  # Pillow can
    assert load_image(tmp_path / "x.tif").size == (8, 8)
