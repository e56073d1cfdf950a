"""The norm in one operation against detectron2's formula, alone and in the whole detector."""

import copy

import pytest
import torch
from detectron2.layers import get_norm
from detectron2.utils.events import EventStorage
from helpers.common import ROOT, TINY_DETECTOR, detector_batch, draw_instances

from lomar_det.config.lazy import load_config
from lomar_det.modeling import ChannelLayerNorm, fuse_norms
from lomar_det.modeling.build import build_model


def outputs_and_gradients(norm, x, gradient):
    x = x.clone().requires_grad_()  # keeps the order in memory
    norm.zero_grad()
    y = norm(x)
    y.backward(gradient)
    return y, x.grad, norm.weight.grad, norm.bias.grad


@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (3, 6, 1, 1), (0, 6, 4, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_detectron2s_formula(shape, layout):
    theirs = get_norm("LN", 6).double()
    torch.nn.init.normal_(theirs.weight)
    torch.nn.init.normal_(theirs.bias)
    ours = fuse_norms(torch.nn.Sequential(copy.deepcopy(theirs)))[0]
    assert type(ours) is ChannelLayerNorm
    x, gradient = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    x = (3 + x).contiguous(memory_format=layout)
    expected = outputs_and_gradients(theirs, x, gradient)
    torch.testing.assert_close(outputs_and_gradients(ours, x, gradient), expected)


def test_the_result_has_its_channels_last():
    y = ChannelLayerNorm(6)(torch.randn(2, 6, 5, 7))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_detector_has_the_same_losses_and_gradients(tmp_path):
    path = ROOT / "configs/custom/mask_rcnn_lomar_vit_tiny.py"
    model = build_model(load_config(path, TINY_DETECTOR))
    norms = [m for m in model.modules() if type(m) is ChannelLayerNorm]
    assert len(norms) == 4 * 2 + 1 + 1 + 1  # pyramid (one level has a third), box head, mask head
    data = draw_instances(tmp_path, num_images=2)
    batch = detector_batch(data["images"], data["annotations"])

    def losses_and_gradients():
        torch.manual_seed(0)
        model.zero_grad()
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()
        return losses, {name: p.grad for name, p in model.named_parameters()}

    ours = losses_and_gradients()
    for norm in norms:
        norm.__class__ = ChannelLayerNorm.__base__
    torch.testing.assert_close(ours, losses_and_gradients(), rtol=1e-3, atol=1e-6)
