"""What is drawn: which pixels are the image's, which the model's, and how they are scaled."""

import os

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from lomar_det.layers import patchify
from lomar_pretrain import MAE, LoMaR, sample_windows
from lomar_pretrain.data.transforms import denormalize, normalize
from lomar_pretrain.figures.plots import figure_to_array, plot_training, reconstruction_figure
from lomar_pretrain.figures.reconstruction import GREY, fit_to_model, open_examples, reconstruct

SMALL = dict(img_size=32, patch_size=4, embed_dim=24, depth=1, num_heads=2)
DECODER = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)


def make_lomar(**settings):
    return LoMaR(**SMALL, window_size=3, num_windows=3, **settings)


def noise_image(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def scaled(pred, patch, norm_pix_loss):
    """One patch's prediction as pixels, written out."""
    return pred * (patch.var() + 1e-6).sqrt() + patch.mean() if norm_pix_loss else pred


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_lomar_pixels_against_a_literal_loop(norm_pix_loss):
    model = make_lomar(norm_pix_loss=norm_pix_loss)
    image = normalize(pil_to_tensor(noise_image(40, 24)))  # a grid of 6 rows and 10 columns
    result = reconstruct(model, image, seed=5)
    generator = torch.Generator().manual_seed(5)
    windows = sample_windows(1, (6, 10), 3, 3, 0.8, generator=generator)
    with torch.no_grad():
        pred = model.eval()(image[None], windows).pred
    filled, masked = image.clone(), denormalize(image)
    for m in (2, 1, 0):  # the first window lies on top
        for token, patch_id in enumerate(windows.patch_ids[m].tolist()):
            y, x = patch_id // 10 * 4, patch_id % 10 * 4
            patch = image[:, y : y + 4, x : x + 4]
            filled[:, y : y + 4, x : x + 4] = patch
            masked[:, y : y + 4, x : x + 4] = denormalize(patch)
            if windows.mask[m, token]:
                pixels = scaled(pred[m, token], patch, norm_pix_loss)
                filled[:, y : y + 4, x : x + 4] = pixels.reshape(4, 4, 3).permute(2, 0, 1)
                masked[:, y : y + 4, x : x + 4] = GREY
    torch.testing.assert_close(result.filled, denormalize(filled))
    torch.testing.assert_close(result.masked, masked)
    torch.testing.assert_close(result.original, denormalize(image))
    corner = windows.patch_ids[0, 0].item()
    assert result.boxes[0].tolist() == [corner % 10 * 4, corner // 10 * 4, 12, 12]


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_mae_pixels(norm_pix_loss):
    model = MAE(**SMALL, **DECODER, norm_pix_loss=norm_pix_loss)
    image = normalize(pil_to_tensor(noise_image(32, 32)))
    result = reconstruct(model, image, seed=5)
    noise = torch.rand(1, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        output = model.eval()(image[None], noise)
    patches = patchify(image[None], 4)[0]
    predicted, filled = patchify(result.predicted[None], 4)[0], patchify(result.filled[None], 4)[0]
    original = patchify(result.original[None], 4)[0]
    for i, hidden in enumerate(output.mask[0].tolist()):
        pixels = scaled(output.pred[0, i], patches[i], norm_pix_loss)
        expected = denormalize(pixels.reshape(4, 4, 3).permute(2, 0, 1)).permute(1, 2, 0).flatten()
        torch.testing.assert_close(predicted[i], expected)
        torch.testing.assert_close(filled[i], expected if hidden else original[i])
    assert output.mask.sum() == 48 and len(result.boxes) == 0


def test_drawing_leaves_the_run_alone():
    model = make_lomar().train()
    image = normalize(pil_to_tensor(noise_image(32, 32)))
    state = torch.get_rng_state()
    first, second = reconstruct(model, image), reconstruct(model, image)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert torch.equal(first.filled, second.filled)
    assert not torch.equal(first.boxes, reconstruct(model, image, seed=1).boxes)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 100), (32, 32)), ((90, 60), (32, 48)), ((60, 90), (48, 32)), ((5, 3000), (128, 32))],
)
def test_lomar_keeps_the_shape_of_an_image(size, expected):
    image = fit_to_model(noise_image(*size), make_lomar())
    assert image.shape == (3, *expected)  # height, width; no longer than 4 to 1


def test_mae_gets_the_middle_of_an_image():
    assert fit_to_model(noise_image(90, 60), MAE(**SMALL, **DECODER)).shape == (3, 32, 32)


def test_unreadable_images_are_named_and_their_neighbours_drawn(tmp_path, lomar_log):
    for i in range(6):
        noise_image(40, 30).save(tmp_path / f"{i}.png")
    for i in (0, 4, 5):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    examples = open_examples(sorted(tmp_path.iterdir()), 3, make_lomar())
    assert [name for name, _ in examples] == ["1.png", "2.png"]  # the third pair is all broken
    assert all(f"{i}.png" in lomar_log.text for i in (0, 4, 5))


@pytest.mark.parametrize(
    ("model", "words", "panels"),
    [
        (make_lomar(), ("TRUE mean", "LoMaR: 7 of 9", "3 windows"), 6),
        (make_lomar(norm_pix_loss=False), ("plain pixels", "LoMaR"), 6),
        (MAE(**SMALL, **DECODER), ("TRUE mean", "MAE: 48 of 64", "reconstructed + visible"), 4),
    ],
)
def test_figures_say_what_they_show(model, words, panels):
    odd = "$b_2$" + os.fsdecode(b"\xe9.png")  # neither a formula nor a broken font
    images = [(name, fit_to_model(noise_image(60, 45), model)) for name in ("a.png", odd)]
    figure = reconstruction_figure(model, images, title="epoch 3")
    text = " ".join(t.get_text() for t in (figure._suptitle, figure._supxlabel))
    text += " ".join(axis.get_title() for axis in figure.axes)
    assert all(word in text for word in (*words, "epoch 3"))
    assert len(figure.axes) == 2 * panels and figure.axes[0].get_ylabel() == "a.png"
    pixels = figure_to_array(figure)
    assert pixels.dtype == np.uint8 and pixels.shape[0] == 3 and pixels.std() > 10


def test_one_window_needs_four_panels():
    model = make_lomar()
    images = [("a.png", fit_to_model(noise_image(60, 45), model))]
    assert len(reconstruction_figure(model, images, num_windows=1).axes) == 4


@pytest.mark.parametrize(("probe", "panels"), [(True, 4), (False, 3)])
def test_training_plot_has_a_panel_for_what_was_measured(tmp_path, monkeypatch, probe, panels):
    metrics = [
        {"iteration": i, "total_loss": 1.0, "lr": 0.1, "img_per_s": 9.0}
        | ({"knn_top1": 30.0} if probe and i % 2 else {})
        for i in range(6)
    ]
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, path: figures.append(f) or save(f, path))
    assert plot_training(metrics, tmp_path / "loss.png").stat().st_size > 0
    titles = [axis.get_title() for axis in figures[0].axes if axis.get_title()]
    assert len(titles) == panels and any("kNN" in title for title in titles) == probe
