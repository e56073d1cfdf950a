"""Masks kept within their regions, against masks of the whole image."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances

from lomar_det.detection.instance_masks import InstanceMasks

SIZE = (40, 60)  # (height, width)


@pytest.fixture
def pasted():
    """What detectron2 pastes into the whole image, and ours."""
    boxes = torch.tensor(
        [[3.2, 4.9, 20.4, 30.1], [0, 0, 60, 40], [50.5, 35.5, 60, 40], [7, 0, 9, 40]]
    )
    probabilities = torch.rand(4, 28, 28).pow(0.2)
    whole = paste_masks_in_image(probabilities, boxes, SIZE).numpy()
    return whole, InstanceMasks.paste(probabilities, boxes, SIZE)


def test_regions_hold_what_detectron2_pastes(pasted):
    whole, masks = pasted
    assert whole.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(np.asarray(masks), whole)
    assert sum(mask.size for _, _, mask in masks.regions()) < 0.6 * whole.size


def test_run_lengths_are_pycocotools_own(pasted):
    whole, masks = pasted
    for ours, mask in zip(masks.to_rle(), whole, strict=True):
        expected = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        assert ours == {"size": list(SIZE), "counts": expected["counts"].decode()}


def test_empty_and_full_masks_become_run_lengths():
    regions = [coco_mask.encode(np.asfortranarray(np.full(SIZE, v, np.uint8))) for v in (0, 1)]
    masks = InstanceMasks(SIZE, [(0, 0)] * 2, regions)
    decoded = coco_mask.decode(masks.to_rle())  # (height, width, 2)
    assert not decoded[..., 0].any() and decoded[..., 1].all()


def test_a_tile_pastes_into_its_place():
    box, probabilities = torch.tensor([[2.5, 3.5, 18.0, 16.0]]), torch.rand(1, 28, 28)
    tile = InstanceMasks.paste(probabilities, box, (20, 20))
    placed = InstanceMasks.paste(probabilities, box, SIZE, offset=(30, 15))
    expected = np.zeros((1, *SIZE), bool)
    expected[:, 15:35, 30:50] = tile
    np.testing.assert_array_equal(np.asarray(placed), expected)


def test_indexed_as_a_field_of_instances(pasted):
    whole, masks = pasted
    instances = Instances(SIZE, pred_masks=masks, scores=torch.arange(4))
    for item in (torch.tensor([True, False, False, True]), torch.tensor([2, 0]), slice(1, 3)):
        chosen = instances[item]
        np.testing.assert_array_equal(
            np.asarray(chosen.pred_masks),
            whole[np.asarray(item)] if not isinstance(item, slice) else whole[item],
        )
    empty = instances[torch.zeros(4, dtype=torch.bool)]
    assert np.asarray(empty.pred_masks).shape == (0, *SIZE) and empty.pred_masks.to_rle() == []
    both = Instances.cat([instances, empty, instances[:1]])
    np.testing.assert_array_equal(np.asarray(both.pred_masks), np.concatenate([whole, whole[:1]]))


def test_union(pasted):
    whole, masks = pasted
    np.testing.assert_array_equal(np.asarray(masks[[0, 2]].union())[0], whole[0] | whole[2])
