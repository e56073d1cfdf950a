"""Finding and opening images of all kinds."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from lomar_det.data import images
from lomar_det.data.images import image_size, load_box, load_image
from lomar_det.errors import UserError
from lomar_pretrain.data.transforms import PretrainTransform, denormalize, normalize

PIXELS = np.arange(24 * 16 * 3, dtype=np.uint8).reshape(24, 16, 3)


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


def load_grey(path, pixels, **options):
    """What a grey image of these values is opened as."""
    Image.fromarray(np.asarray(pixels)).save(path, **options)
    image = np.asarray(load_image(path))
    assert (image == image[..., :1]).all()
    return image[..., 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bit_depths_in_sixteen_bits_keep_their_range(tmp_path, suffix, bits):
    ramp = np.linspace(0, 2**bits - 1, 256).round().astype(np.uint16).reshape(16, 16)
    grey = load_grey(tmp_path / f"x.{suffix}", ramp)
    assert np.abs(grey.astype(int).ravel() - np.arange(256)).max() <= 1


def test_a_dark_image_of_few_bits_stays_dark(tmp_path):
    assert load_grey(tmp_path / "x.png", np.full((4, 4), 51, np.uint16)).max() == 51
    assert load_grey(tmp_path / "x.png", np.zeros((4, 4), np.uint16)).max() == 0


FLOATS = [
    ([0, 0.2, 1], [0, 51, 255]),  # of known scale
    ([0.2, 0.2, 0.2], [51, 51, 51]),
    ([280, 290, 300], [0, 128, 255]),  # of unknown scale
    ([-30, 0, 0], [0, 255, 255]),
    ([np.nan, 0, 1], [0, 0, 255]),
    ([np.inf, -np.inf, 0.2], [0, 0, 51]),
    ([np.nan, 100, 200], [0, 0, 255]),
    ([np.nan] * 3, [0, 0, 0]),
    ([7, 7, 7], [0, 0, 0]),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values, expected", FLOATS)
def test_floating_point_tiff(tmp_path, values, expected):
    assert load_grey(tmp_path / "x.tif", np.float32([values])).tolist() == [expected]


def test_whole_numbers_without_a_usual_depth(tmp_path):
    grey = load_grey(tmp_path / "x.tif", np.int32([[-1024, 988, 3000]]))  # computed tomography
    assert grey.tolist() == [[0, 128, 255]]
    assert load_grey(tmp_path / "x.tif", np.int32([[0, 10**6]])).tolist() == [[0, 255]]


def test_nodata_of_a_geotiff_does_not_count(tmp_path):
    height = np.float32([[-9999, 100, 200]])
    assert load_grey(tmp_path / "x.tif", height, tiffinfo={42113: "-9999"}).tolist() == [
        [0, 0, 255]
    ]
    assert load_grey(tmp_path / "x.tif", height, tiffinfo={42113: "none"}).tolist() == [
        [0, 252, 255]
    ]


def test_cmyk_jpeg_has_its_colours_and_not_their_negatives(tmp_path):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red.save(tmp_path / "x.jpg")  # Adobe's polarity, as Photoshop writes it
    assert b"Adobe" in (tmp_path / "x.jpg").read_bytes()
    r, g, b = load_image(tmp_path / "x.jpg").getpixel((8, 8))
    assert r > 240 and g < 15 and b < 15


def test_transparency_lies_on_white(tmp_path):
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[2:] = (0, 0, 255, 255)
    for name in ("x.png", "x.tif", "x.webp"):
        Image.fromarray(clear).save(tmp_path / name, lossless=True)
        image = load_image(tmp_path / name)
        assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((0, 3)) == (0, 0, 255)


@pytest.mark.parametrize("name", ["x.tif", "x.webp", "x.png", "x.gif"])
def test_the_first_of_several_frames_is_taken(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(tmp_path / name).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, suffix, orientation):
    corners = np.zeros((32, 48, 3), np.uint8)
    corners[:16, :24] = 255  # the first row and column of the image as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners).save(tmp_path / f"x.{suffix}", exif=exif)
    image = load_image(tmp_path / f"x.{suffix}")
    assert image.size == image_size(tmp_path / f"x.{suffix}")
    assert image.size == ((48, 32) if orientation < 5 else (32, 48))
    # EXIF 2.3, tag 0x0112: where the stored first row and the first column are to be seen
    top, left = orientation in (1, 2, 5, 6), orientation in (1, 4, 5, 8)
    x, y = (4 if left else image.width - 4), (4 if top else image.height - 4)
    assert image.getpixel((x, y))[0] > 200
    assert image.getpixel((image.width - x, image.height - y))[0] < 50


def test_the_limit_of_size_is_a_setting(tmp_path):
    Image.new("L", (1500, 1000)).save(tmp_path / "x.png")
    for limit in (1.5, 180, None):
        assert load_image(tmp_path / "x.png", limit).size == (1500, 1000)
    for limit in (1.4, 0.7):  # Pillow itself warns of the one and refuses the other
        with pytest.raises(UserError, match=f"x.png.*{limit}"):
            load_image(tmp_path / "x.png", limit)
    transform = PretrainTransform(32, max_megapixels=0.5)
    with pytest.raises(UserError, match="data.max_megapixels"):
        transform(tmp_path / "x.png")
    assert Image.MAX_IMAGE_PIXELS == 89478485  # Pillow's own limit is left as it was
    for wrong in (0, "many"):
        with pytest.raises(UserError, match="data.max_megapixels"):
            PretrainTransform(32, max_megapixels=wrong)


def test_normalisation_is_undone():
    image = Image.fromarray(PIXELS)
    restored = denormalize(normalize(pil_to_tensor(image))).permute(1, 2, 0) * 255
    torch.testing.assert_close(restored, torch.tensor(PIXELS).float(), atol=0.01, rtol=0)


def test_normalisation_is_torchvisions():
    images = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8)
    scaled = v2.functional.to_dtype(images, torch.float32, scale=True)
    expected = v2.functional.normalize(scaled, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.equal(normalize(images), expected)


def photo(width, height):
    """Smooth colours with edges, as a camera sees them."""
    rng = np.random.default_rng(0)
    pixels = np.asarray(
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
    ).copy()
    pixels[height // 3 : height // 2, width // 4 : width // 2] //= 2
    return Image.fromarray(pixels)


def difference(a, b):
    """Mean, of 255."""
    return np.abs(np.asarray(a).astype(float) - np.asarray(b)).mean()


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(images, "simplejpeg", None)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("suffix, mode", [(s, m) for s, modes in MODES.items() for m in modes])
def test_a_box_is_that_of_the_whole_image(tmp_path, suffix, mode):
    path = tmp_path / f"x.{suffix}"
    photo(96, 64).convert(mode).save(path)
    sizes = []
    box = load_box(path, lambda *size: sizes.append(size) or (8, 16, 32, 48), (32, 48))
    assert sizes == [(64, 96)]
    assert difference(box, load_image(path).crop((16, 8, 64, 40))) == 0


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_lies_in_the_turned_image(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(640, 480).save(tmp_path / f"x.{suffix}", exif=exif)
    image = load_image(tmp_path / f"x.{suffix}")
    for enough, shrink in ((200, 1), (100, 2)):  # of a JPEG
        box = load_box(tmp_path / f"x.{suffix}", lambda *_: (40, 60, 240, 200), (enough, enough))
        shrink = shrink if suffix == "jpg" else 1
        assert box.shape == (240 // shrink, 200 // shrink, 3)
        part = image.crop((60, 40, 260, 280)).resize(box.shape[1::-1], Image.Resampling.BOX)
        assert difference(box, part) < 2


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_a_large_jpeg_is_decoded_no_finer_than_needed(tmp_path, shrink):
    photo(1603, 1201).save(tmp_path / "x.jpg", quality=95)
    enough = 1100 // shrink, 1300 // shrink
    box = load_box(tmp_path / "x.jpg", lambda *_: (100, 300, 1101, 1301), enough)
    assert enough[0] <= box.shape[0] <= enough[0] + 2 and enough[1] <= box.shape[1] <= enough[1] + 2
    part = load_image(tmp_path / "x.jpg").crop((300, 100, 1601, 1201))
    part = part.resize(box.shape[1::-1], Image.Resampling.BOX)
    assert difference(box, part) < 4


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(
    "size, tolerance",  # boxes in large images are rounded to coarser pixels
    [((640, 480), 2), ((300, 500), 0.1), ((90, 40), 0.1), ((2000, 1500), 2)],
)
def test_crops_are_those_of_torchvision(tmp_path, size, tolerance):
    """The slow twin: the whole image by Pillow, then torchvision's transforms on it."""
    photo(*size).save(tmp_path / "x.jpg", quality=95)
    ours = PretrainTransform((64, 96), (0.3, 0.9), flip=True)
    twin = v2.Compose(
        [
            v2.RandomResizedCrop((64, 96), (0.3, 0.9), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
        ]
    )
    for seed in range(20):
        torch.manual_seed(seed)
        crop = ours(tmp_path / "x.jpg")
        torch.manual_seed(seed)
        expected = pil_to_tensor(twin(load_image(tmp_path / "x.jpg")))
        assert crop.shape == (3, 64, 96) and crop.dtype == torch.uint8
        assert difference(crop, expected) < tolerance


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("size", [(1, 1), (3, 4000), (4000, 1)])
def test_images_of_any_shape_give_crops(tmp_path, suffix, size):
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", size, (250, 120, 20)).save(path)
    for img_size, scale in ((1, (1e-9, 1e-9)), ((8, 64), (1, 1)), (32, (0.2, 1.0))):
        crop = PretrainTransform(img_size, scale)(path)
        mean = crop.float().mean(dim=(1, 2))
        torch.testing.assert_close(mean, torch.tensor([250.0, 120, 20]), atol=3, rtol=0)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("enough", [60, 10])  # decoded whole, and at a fraction
def test_damaged_jpegs_are_refused_however_they_are_decoded(tmp_path, enough):
    path = tmp_path / "cut.jpg"
    photo(120, 90).save(path, quality=95)
    whole = path.read_bytes()
    load_box(path, lambda *_: (0, 0, 90, 120), (enough, enough))
    for length in (0, 10, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut.jpg"):
            load_box(path, lambda *_: (0, 0, 90, 120), (enough, enough))
