"""The window sampler, by properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lomar_pretrain import sample_windows
from lomar_pretrain.models.window_sampling import windows_from_noise


@st.composite
def window_settings(draw):
    height, width = draw(st.integers(1, 16)), draw(st.integers(1, 16))
    size = draw(st.integers(1, min(height, width)))
    ratio = draw(st.floats(1 / size**2, 1))
    return draw(st.integers(1, 9)), (height, width), size, draw(st.integers(1, 5)), ratio


@given(window_settings())
@settings(deadline=None, max_examples=60)
def test_every_window_lies_inside_and_masks_exactly(arguments):
    batch, (height, width), size, windows, ratio = arguments
    sample = sample_windows(batch, (height, width), size, windows, ratio)
    assert sample.image_ids.tolist() == [i for i in range(batch) for _ in range(windows)]
    assert sample.patch_ids.shape == sample.mask.shape == (batch * windows, size * size)
    assert sample.mask.dtype == torch.bool
    rows, columns = sample.patch_ids // width, sample.patch_ids % width
    assert rows.min() >= 0 and rows.max() < height
    # A k x k square in row-major order: rows and columns count up from its corner.
    offsets = torch.arange(size * size)
    assert torch.equal(rows - rows[:, :1], (offsets // size).expand_as(rows))
    assert torch.equal(columns - columns[:, :1], (offsets % size).expand_as(columns))
    assert (sample.mask.sum(1) == int(size * size * ratio)).all()


@pytest.mark.parametrize("batch", [3, 4, 8, 12])
def test_every_image_gets_its_own_windows(batch):
    """Also where the batch divides by the number of windows: the released code's slip."""
    sample = sample_windows(batch, 14, num_windows=4)
    corners = sample.patch_ids[:, 0].view(batch, 4)
    assert len({tuple(row.tolist()) for row in corners}) == batch
    assert all(len(set(row.tolist())) > 1 for row in corners)


def test_locations_are_uniform_and_masks_differ():
    sample = sample_windows(4000, 14, num_windows=4)
    counts = torch.bincount(sample.patch_ids[:, 0], minlength=196).view(14, 14)
    assert (counts[8:] == 0).all() and (counts[:, 8:] == 0).all()
    expected = 16000 / 64
    assert (counts[:8, :8] > 0.7 * expected).all() and (counts[:8, :8] < 1.3 * expected).all()
    share = sample.mask.float().mean(0)
    assert (share - 39 / 49).abs().max() < 0.02


def test_windows_of_an_image_depend_on_its_own_noise_alone():
    noise = torch.rand(6, 2, 11)
    whole = windows_from_noise(noise, (9, 5), 3, 0.8)
    part = windows_from_noise(noise[[4, 1]], (9, 5), 3, 0.8)
    assert part.image_ids.tolist() == [0, 0, 1, 1]
    assert torch.equal(part.patch_ids, whole.patch_ids[[8, 9, 2, 3]])
    assert torch.equal(part.mask, whole.mask[[8, 9, 2, 3]])


@given(st.integers(1, 400), st.integers(1, 400))
@settings(deadline=None, max_examples=60)
def test_extreme_noise_stays_inside_the_grid(height, width):
    extremes = torch.tensor([0.0, 1 - 2**-24]).view(2, 1, 1).expand(2, 1, 3)  # what rand can give
    ids = windows_from_noise(extremes, (height, width), 1, 1.0).patch_ids
    assert ids.flatten().tolist() == [0, height * width - 1]


def test_same_generator_same_windows():
    first, second = (
        sample_windows(5, 14, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first.patch_ids, second.patch_ids) and torch.equal(first.mask, second.mask)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"grid_size": (14, 5)}, "window_size.*14x5"),
        ({"grid_size": 14, "mask_ratio": 1.5}, "mask_ratio"),
        ({"grid_size": 14, "num_windows": 0}, "num_windows"),
        ({"grid_size": 14, "window_size": 0}, "window_size"),
    ],
)
def test_impossible_windows_are_refused_with_the_reason(arguments, words):
    with pytest.raises(ValueError, match=words):
        sample_windows(2, **arguments)
