"""The bucket table against the literal formula, pair by pair."""

import math

import pytest
import torch

from lomar_det.layers import (
    CLS_BUCKET,
    IRPE,
    TokenGrid,
    bucket_table,
    piecewise_index,
    subset_buckets,
)
from lomar_det.layers.irpe import distance_buckets


def literal_bucket_1d(d: int) -> int:
    """Design formula, written out: alpha 1.9, beta 3.8, gamma 15.2."""
    if abs(d) <= 1.9:
        return d
    value = 1.9 + math.log(abs(d) / 1.9) / math.log(15.2 / 1.9) * 1.9
    return int(math.copysign(min(round(value), 3.8), d))


def test_piecewise_index_values():
    expected = {0: 0, 1: 1, 2: 2, 3: 2, 4: 3, 6: 3, 13: 3, 63: 3}
    for distance, bucket in expected.items():
        assert piecewise_index(distance) == bucket
        assert piecewise_index(-distance) == -bucket


def test_buckets_of_all_distances():
    assert distance_buckets(70) == [literal_bucket_1d(d) + 3 for d in range(-70, 71)]


@pytest.mark.parametrize("height, width", [(7, 7), (14, 14), (5, 9), (64, 64)])
def test_bucket_table_is_the_literal_formula(height, width):
    table = bucket_table(TokenGrid(height, width)).view(height, width, height, width)
    rows = [[literal_bucket_1d(i - j) + 3 for j in range(height)] for i in range(height)]
    columns = [[literal_bucket_1d(i - j) + 3 for j in range(width)] for i in range(width)]
    # Every pair for small grids, every query of two rows for the large one.
    for y in range(height) if height < 20 else (0, 37):
        for x in range(width):
            for y2 in range(height):
                expected = [rows[y][y2] * 7 + columns[x][x2] for x2 in range(width)]
                assert table[y, x, y2].tolist() == expected
    assert table.min() >= 0 and table.max() <= 48


def test_a_window_trains_all_spatial_buckets():
    assert bucket_table(TokenGrid(7, 7)).unique().numel() == 49


def test_class_token_has_its_own_bucket():
    table = bucket_table(TokenGrid(7, 7, cls_token=True))
    assert (table[0] == CLS_BUCKET).all() and (table[:, 0] == CLS_BUCKET).all()
    assert torch.equal(table[1:, 1:], bucket_table(TokenGrid(7, 7)))


def test_subset_depends_on_coordinates_not_on_order():
    grid = TokenGrid(6, 5, cls_token=True)
    ids = torch.stack([torch.randperm(30)[:8] for _ in range(3)])
    buckets = subset_buckets(grid, ids)
    for sample, picked in zip(buckets, ids.tolist(), strict=True):
        for i, a in enumerate(picked, start=1):
            for j, b in enumerate(picked, start=1):
                rows, columns = a // 5 - b // 5, a % 5 - b % 5
                expected = (literal_bucket_1d(rows) + 3) * 7 + literal_bucket_1d(columns) + 3
                assert sample[i, j] == expected
        assert (sample[0] == CLS_BUCKET).all() and (sample[:, 0] == CLS_BUCKET).all()


def test_table_parameter_has_the_official_shape_and_starts_at_zero():
    (name, table), *rest = IRPE(64).named_parameters()
    assert (name, tuple(table.shape), rest) == ("lookup_table_weight", (1, 64, 50), [])
    assert not table.any()


def test_cached_tables_ignore_the_device_in_force():
    with torch.device("meta"):
        table = bucket_table(TokenGrid(11, 3), "cpu")
    assert table.device.type == "cpu" and table.max() == 47
