"""What a step over several passes has in common with the large batch, for a whole Mask R-CNN.

Proposals are sampled at random, so sampling is made exhaustive here: everything that can be taken
is taken. What is left are the normalisers: RPN losses are divided by a constant per image, box
losses by the proposals of the pass, mask losses by its positive ones.
"""

import pytest
import torch
from detectron2.utils.events import EventStorage
from helpers.common import ROOT, detector_batch, draw_instances

from lomar_det.config.lazy import load_config
from lomar_det.engine import Trainer
from lomar_det.modeling.build import build_model


@pytest.fixture
def detector():
    path = ROOT / "configs" / "custom" / "mask_rcnn_lomar_vit_tiny.py"
    small = {"model.backbone.net.depth": 2, "model.backbone.square_pad": 96}
    small |= {"model.proposal_generator.post_nms_topk": [4, 4], "model.roi_heads.num_classes": 8}
    for part in ("proposal_generator", "roi_heads"):
        small[f"model.{part}.batch_size_per_image"] = 100_000
    cfg = load_config(path, [], small)
    model = build_model(cfg)
    # as initialised, every proposal would have the same loss
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight)
    return model


@pytest.fixture
def pairs(tmp_path):
    """Two batches of two different images each."""
    data = draw_instances(tmp_path, 4)
    batch = detector_batch(data["images"], data["annotations"])
    return [batch[:2], batch[2:]]


def gradients(model, batches, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Trainer(model, iter(batches), optimizer, **settings).train(0, 1)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_four_passes_of_two_equal_one_of_eight(detector, pairs):
    """Exactly, where every pass has as many proposals: here the same two images, four times."""
    pair = pairs[0]
    small = gradients(detector, [pair] * 4, accumulation_steps=4)
    large = gradients(detector, [pair * 4])
    for name, grad in large.items():
        torch.testing.assert_close(small[name], grad, rtol=1e-3, atol=1e-5, msg=name)
    assert max(grad.abs().max() for grad in large.values()) > 1e-2


def test_what_differs_with_other_images_is_the_weight_of_a_pass(detector, pairs):
    losses, proposals = [], []
    count = detector.roi_heads.box_head.register_forward_hook(
        lambda _module, inputs, _out: proposals.append(len(inputs[0]))
    )
    with EventStorage():
        for batch in (*pairs, pairs[0] + pairs[1]):
            losses.append(detector(batch))
    count.remove()
    first, second, whole = losses
    assert proposals[2] == proposals[0] + proposals[1] and proposals[0] != proposals[1]
    for name in ("loss_rpn_cls", "loss_rpn_loc"):
        torch.testing.assert_close((first[name] + second[name]) / 2, whole[name])
    for name in ("loss_cls", "loss_box_reg"):
        by_proposal = first[name] * proposals[0] + second[name] * proposals[1]
        torch.testing.assert_close(by_proposal / proposals[2], whole[name])
        by_pass = (first[name] + second[name]) / 2
        assert not torch.isclose(by_pass, whole[name], rtol=1e-3)
