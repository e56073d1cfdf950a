"""Tile geometry, and detections of tiles put together again."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from lomar_det.data.tiles import tile_boxes, tile_spans
from lomar_det.detection.tiling.merging import _suppress, group_detections
from lomar_det.errors import UserError


@given(length=st.integers(1, 600), tile_size=st.integers(1, 200), data=st.data())
def test_spans_cover_the_side(length, tile_size, data):
    overlap = data.draw(st.integers(0, tile_size - 1))
    spans = tile_spans(length, tile_size, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert all(0 < stop - start <= tile_size for start, stop in spans)
    shared = [a[1] - b[0] for a, b in zip(spans[:-1], spans[1:], strict=True)]
    if overlap:
        assert all(stop - start == min(tile_size, length) for start, stop in spans)
        assert all(s >= overlap for s in shared)
    else:
        assert all(s == 0 for s in shared)


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(100, 40, 40), (100, -1, 0), (100, 40, -1)]
)
def test_unusable_spans_are_refused(length, tile, overlap):
    with pytest.raises(UserError, match="overlap"):
        tile_spans(length, tile, overlap)


def test_tile_size_zero_is_the_whole_image():
    assert list(tile_boxes((230, 170), 0, 0)) == [(0, 0, 230, 170)]


SIZE = (700, 500)


def detect_in_tiles(objects, tiles, jitter=0.0, least=4):
    """What a faultless detector sees in every tile: the objects, clipped."""
    boxes, tile_ids, ids = [], [], []
    for t, tile in enumerate(tiles):
        for i, box in enumerate(objects):
            start = [max(box[k], tile[k]) for k in (0, 1)]
            stop = [min(box[k], tile[k]) for k in (2, 3)]
            if all(b - a >= least for a, b in zip(start, stop, strict=True)):
                boxes.append([*start, *stop])
                tile_ids.append(t)
                ids.append(i)
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    noise = jitter * (2 * torch.rand(boxes.shape) - 1)
    places = torch.tensor(tiles)[tile_ids]
    noisy = boxes + noise
    noisy = torch.minimum(
        torch.maximum(noisy, places[:, :2].repeat(1, 2)), places[:, 2:].repeat(1, 2)
    )
    return noisy, torch.tensor(tile_ids), ids


def merged(objects, tiles, classes=None, jitter=0.0):
    """(object id, box) of every group; each must hold detections of one object only."""
    boxes, tile_ids, ids = detect_in_tiles(objects, tiles, jitter)
    kinds = torch.tensor([0 if classes is None else classes[i] for i in ids])
    scores = torch.rand(len(ids))
    groups = group_detections(boxes, scores, kinds, tile_ids, torch.tensor(tiles), SIZE)
    best = [scores[group].max().item() for group in groups]
    assert best == sorted(best, reverse=True)
    result = []
    for group in groups:
        owners = {ids[i] for i in group}
        assert len(owners) == 1
        hull = torch.cat([boxes[group][:, :2].amin(0), boxes[group][:, 2:].amax(0)])
        result.append((owners.pop(), hull.tolist()))
    return sorted(result)


@st.composite
def separate_boxes(draw):
    """Objects that do not touch, one in each cell of some grid, up to nearly three tiles long."""
    columns, rows = draw(st.sampled_from([(1, 1), (2, 3), (7, 5)]))
    width, height = SIZE[0] // columns, SIZE[1] // rows
    boxes = []
    for i in range(columns * rows):
        w, h = (draw(st.integers(12, side - 4)) for side in (width, height))
        x = i % columns * width + draw(st.integers(2, width - w - 2))
        y = i // columns * height + draw(st.integers(2, height - h - 2))
        boxes.append((x, y, x + w, y + h))
    return boxes


@settings(max_examples=60, deadline=None)
@given(separate_boxes(), st.sampled_from([(200, 60), (260, 40), (150, 100)]))
def test_every_object_comes_out_once_and_whole(objects, tiling):
    """Also those that no tile sees whole, across borders and corners."""
    result = merged(objects, list(tile_boxes(SIZE, *tiling)))
    assert result == [(i, [float(v) for v in box]) for i, box in enumerate(objects)]


def test_boxes_that_differ_a_little_are_still_one_object():
    tiles = list(tile_boxes(SIZE, 200, 60))
    objects = [(130, 100, 170, 150), (190, 20, 480, 90), (20, 300, 60, 480)]
    result = merged(objects, tiles, jitter=1.5)
    assert [i for i, _ in result] == [0, 1, 2]
    for i, box in result:
        assert torch.tensor(box).sub(torch.tensor(objects[i])).abs().max() <= 1.5


def test_neighbours_and_other_classes_stay_apart():
    """Two long objects side by side across a border, and one of another class over them."""
    tiles = list(tile_boxes(SIZE, 200, 60))
    objects = [(100, 20, 320, 60), (100, 64, 320, 104), (100, 20, 320, 60)]
    result = merged(objects, tiles, classes=[0, 0, 1])
    assert result == [(i, [float(v) for v in box]) for i, box in enumerate(objects)]


def test_a_neighbour_that_sees_all_decides():
    """A part that looked like something, but that the tile which sees it whole does not confirm."""
    tiles = torch.tensor([[0, 0, 200, 500], [140, 0, 340, 500]])
    cut = torch.tensor([[160.0, 50, 200, 90]])
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.long)
    assert group_detections(cut, one, zero, zero, tiles, SIZE) == []
    # nobody sees more of it: it stays
    assert group_detections(cut - 60, one, zero, zero, tiles, SIZE) == [[0]]
    assert group_detections(cut - torch.tensor([60.0, 0, 0, 0]), one, zero, zero, tiles, SIZE) == [
        [0]
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_suppression_is_that_of_torchvision(seed):
    torch.manual_seed(seed)
    corners = torch.rand(120, 2) * 100
    boxes = torch.cat([corners, corners + 5 + 30 * torch.rand(120, 2)], dim=1)
    scores, classes = torch.rand(120), torch.randint(0, 2, (120,))
    ours = _suppress(boxes, scores, classes, torch.arange(120), 0.4)
    assert ours.tolist() == batched_nms(boxes, scores, classes, 0.4).tolist()


def test_hundreds_of_thousands_of_detections_are_merged_in_seconds():
    """As many as a gigapixel gives: comparing all with all would take hours."""
    tiles = torch.tensor(list(tile_boxes((40_000, 40_000), 512, 128)))
    torch.manual_seed(0)
    tile_ids = torch.arange(len(tiles)).repeat_interleave(10)
    size = 20 + 30 * torch.rand(len(tile_ids), 2)
    corners = tiles[tile_ids, :2] + torch.rand(len(tile_ids), 2) * (512 - size)
    boxes = torch.cat([corners, corners + size], dim=1)
    start = time.perf_counter()
    groups = group_detections(
        boxes, torch.rand(len(boxes)), torch.zeros(len(boxes)), tile_ids, tiles, (40_000, 40_000)
    )
    assert len(boxes) > 100_000 and 0.5 * len(boxes) < len(groups) < len(boxes)
    assert time.perf_counter() - start < 60


def test_no_detections_are_no_objects():
    none = torch.zeros(0)
    tiles = torch.tensor([[0, 0, 400, 500], [300, 0, 700, 500]])
    assert group_detections(none.view(0, 4), none, none.long(), none.long(), tiles, SIZE) == []
