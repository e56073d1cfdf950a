"""Encoders of other code bases: adapted where ours can compute the same, refused where not."""

import pickle
from functools import partial

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
)
from helpers.common import ROOT
from helpers.small_models import SMALL, Detector, pretrained, randomise, zoo_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lomar_det.checkpoint import load_encoder_weights, load_weights
from lomar_det.checkpoint.rename import read_checkpoint
from lomar_det.config.lazy import load_config, thawed
from lomar_det.errors import UserError
from lomar_det.layers import TokenGrid
from lomar_det.modeling import LoMaRViT
from lomar_pretrain import LoMaR, VisionTransformerClassifier

ABS = dict(rel_pos=False, abs_pos=True, img_size=64)


def timm_vit(**settings) -> VisionTransformer:
    usual = {"img_size": 64, "num_classes": 0}
    return randomise(VisionTransformer(**(usual | SMALL | settings))).eval()


def save(model: nn.Module, path):
    torch.save(model.state_dict(), path)
    return path


def features(model, images):
    """All tokens of an encoder after its norm, the class token first."""
    x = model.patch_embed(images) + model.patch_positions((4, 4))
    x = model.forward_blocks(model.with_cls_token(x), TokenGrid(4, 4, cls_token=True))
    return model.norm(x)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"qkv_bias": False},
        {"no_embed_class": True},
        {"init_values": 0.5},
        {"init_values": 0.5, "qkv_bias": False, "no_embed_class": True},
    ],
)
def test_a_timm_vit_gives_the_same_features(tmp_path, settings):
    source, model = timm_vit(**settings), LoMaR(window_size=3, **SMALL, **ABS).eval()
    report = load_encoder_weights(model, save(source, tmp_path / "timm.pth"))
    assert not report.dropped and "norm.weight" in report.loaded
    assert bool(report.adapted) == bool(settings)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            features(model, images), source.forward_features(images), atol=1e-5, rtol=1e-5
        )


def test_a_timm_classifier_gives_the_same_logits(tmp_path):
    source = timm_vit(num_classes=7, global_pool="avg")
    model = VisionTransformerClassifier(num_classes=7, **SMALL, **ABS).eval()
    report = load_encoder_weights(model, save(source, tmp_path / "timm.pth"))
    assert not report.dropped and not report.initialised
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images), atol=1e-5, rtol=1e-5)


def test_a_timm_vit_without_class_token_fills_a_detector_exactly(tmp_path):
    source = timm_vit(class_token=False, global_pool="avg", fc_norm=False)
    settings = dict(window_block_indexes=[], rel_pos="none", use_abs_pos=True)
    model = LoMaRViT(pretrain_img_size=64, **SMALL, **settings).eval()
    report = load_weights(model, save(source, tmp_path / "timm.pth"))
    assert "norm.weight" in report.dropped
    source.norm = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = source.forward_features(images).transpose(1, 2).reshape(2, 24, 4, 4)
        torch.testing.assert_close(model(images)["last_feat"], wanted, atol=1e-5, rtol=1e-5)


def test_register_tokens_stay_out_and_leave_the_positions_right(tmp_path):
    for embed, count in ((False, 16 + 5), (True, 16)):
        source = timm_vit(reg_tokens=4, no_embed_class=embed)
        assert source.pos_embed.shape[1] == count
        found = read_checkpoint(save(source, tmp_path / "timm.pth"))
        assert found.dropped.keys() == {"reg_token"}
        assert torch.equal(found.tensors["pos_embed"][:, 1:], source.pos_embed[:, -16:])
        wanted = torch.zeros(1, 1, 24) if embed else source.pos_embed[:, :1]
        assert torch.equal(found.tensors["pos_embed"][:, :1], wanted)


def dino_v2(source: VisionTransformer) -> dict:
    """The names of a teacher of DINOv2's training code: blocks in chunks, registers, a mask."""
    state = {}
    for name, value in source.state_dict().items():
        if name.startswith("blocks."):
            name = f"blocks.{int(name.split('.')[1]) // 2}.{name.removeprefix('blocks.')}"
        state[f"backbone.{name}"] = value
    state["backbone.register_tokens"] = torch.ones(1, 4, 24)
    state["backbone.mask_token"] = torch.zeros(1, 24)
    return {"teacher": state | {"dino_head.mlp.0.weight": torch.ones(3, 24)}}


def test_a_dino_v2_teacher_gives_the_same_tensors(tmp_path):
    source = timm_vit(init_values=1.0)
    for block in source.blocks:
        nn.init.ones_(block.ls1.gamma), nn.init.ones_(block.ls2.gamma)
    torch.save(dino_v2(source), tmp_path / "teacher.pth")
    net = LoMaRViT(
        pretrain_img_size=64, window_block_indexes=[], rel_pos="none", use_abs_pos=True, **SMALL
    )
    report = load_weights(net, tmp_path / "teacher.pth")
    for name, value in net.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    assert report.dropped.keys() >= {"backbone.mask_token", "backbone.register_tokens"}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "encoder.", "visual.trunk."])
def test_names_of_wrappers_are_taken_off(tmp_path, prefix):
    source = pretrained()
    torch.save({prefix + k: v for k, v in source.state_dict().items()}, tmp_path / "w.pth")
    report = load_encoder_weights(LoMaR(img_size=112, **SMALL), tmp_path / "w.pth")
    assert len(report.loaded) == len(source.state_dict()) and not report.dropped


def test_two_encoders_in_a_file_are_refused(tmp_path):
    state = pretrained().state_dict()
    both = {
        f"{who}.{name}": value for who in ("student", "teacher") for name, value in state.items()
    }
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(UserError, match="both.pth.*student.*teacher"):
        read_checkpoint(tmp_path / "both.pth")


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.attn.q_bias",
        "rel_pos_bias.relative_position_bias_table",
        "blocks.0.attn.q_norm.weight",
        "blocks.0.mlp.w12.weight",
        "blocks.0.attn.rpe_v.lookup_table_weight",
        "blocks.0.residual.conv1.weight",
        "norm_pre.weight",
        "rope.periods",
        "blocks.0.attn.something",
        "patch_embed.norm.weight",
    ],
)
def test_what_our_encoder_cannot_compute_is_refused(tmp_path, name):
    torch.save(pretrained().state_dict() | {name: torch.ones(24)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="odd.pth"):
        read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    "change",
    [
        {"pos_embed": torch.ones(1, 12, 24)},
        {"pos_embed": torch.ones(17, 24)},
        {"blocks.0.ls1.gamma": torch.ones(7)},
        {"patch_embed.proj.weight": torch.ones(24, 768)},
        {"pos_embed": torch.full((1, 17, 24), torch.inf)},
        {"norm.weight": torch.ones(24, device="meta")},
        {"blocks.0.mlp.fc1.weight": None},
    ],
)
def test_odd_shapes_are_refused(tmp_path, change):
    state = pretrained().state_dict() | change
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="odd.pth"):
        read_checkpoint(tmp_path / "odd.pth")


def test_positions_that_are_not_square_follow_meta(tmp_path):
    model = LoMaR(window_size=2, **SMALL, **(ABS | {"img_size": (64, 32)}))
    meta = {"img_size": [64, 32], "patch_size": 16}
    torch.save({"model": model.state_dict(), "meta": meta}, tmp_path / "b.pth")
    assert read_checkpoint(tmp_path / "b.pth").grid == (4, 2)
    same = LoMaR(window_size=2, **SMALL, **(ABS | {"img_size": (64, 32)}))
    assert not load_encoder_weights(same, tmp_path / "b.pth").adapted
    square = LoMaR(window_size=2, **SMALL, **ABS)
    with pytest.raises(UserError, match="pos_embed"):
        load_encoder_weights(square, tmp_path / "b.pth")


NET = dict(
    img_size=64, window_size=3, window_block_indexes=[0], pretrain_img_size=64, use_abs_pos=True
)


def cascade(model) -> None:
    """As detectron2's ViTDet configs make a Cascade Mask R-CNN of a Mask R-CNN."""
    heads = model.roi_heads
    shape, num_classes = heads.box_head.input_shape, heads.num_classes
    for key in ("box_head", "box_predictor", "proposal_matcher"):
        del heads[key]
    heads._target_ = CascadeROIHeads
    heads.box_heads = [
        L(FastRCNNConvFCHead)(input_shape=shape, conv_dims=[8], fc_dims=[16], conv_norm="LN")
    ] * 3
    heads.box_predictors = [
        L(FastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=16),
            box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
            num_classes=num_classes,
            cls_agnostic_bbox_reg=True,
        )
    ] * 3
    heads.proposal_matchers = [
        L(Matcher)(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False)
    ] * 3


@pytest.mark.parametrize("is_cascade", [False, True], ids=["mask_rcnn", "cascade"])
def test_a_model_of_detectron2s_zoo_fills_the_whole_detector(tmp_path, is_cascade):
    ours = thawed(load_config(ROOT / "configs/custom/mask_rcnn_lomar_vit_tiny.py", [])).model
    ours.roi_heads.num_classes = 3
    if is_cascade:
        cascade(ours)
    ours.backbone.in_feature = "last_feat"
    theirs = ours.copy()
    ours.backbone.net = L(LoMaRViT)(rel_pos="decomposed", **NET, **SMALL)
    theirs.backbone._target_ = SimpleFeaturePyramid
    norm = partial(nn.LayerNorm, eps=1e-6)
    theirs.backbone.net = L(ViT)(use_rel_pos=True, norm_layer=norm, **NET, **SMALL)
    source, model = randomise(instantiate(theirs)).eval(), instantiate(ours).eval()
    path = zoo_file(tmp_path / "model_final_61ccd1.pkl", source.state_dict())
    report = load_weights(model, path)
    assert not report.dropped and not report.adapted and not report.initialised
    assert len(report.loaded) == len(source.state_dict())
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    images = torch.randn(1, 3, 128, 64)
    with torch.no_grad():
        wanted = source.backbone(images)
        for level, feature in model.backbone(images).items():
            torch.testing.assert_close(feature, wanted[level], atol=1e-4, rtol=1e-4)


def test_a_mask_rcnn_lends_a_detector_of_another_kind_what_they_share(tmp_path):
    source = Detector(rel_pos="decomposed", use_abs_pos=True, pretrain_img_size=64)
    state = source.state_dict()
    state |= {"roi_heads.box_head.fc1.weight": torch.ones(3), "iteration": torch.ones(1)}
    path = zoo_file(tmp_path / "mask_rcnn.pkl", state)
    model = Detector(rel_pos="decomposed", use_abs_pos=True, pretrain_img_size=64)
    report = load_weights(model, path)
    assert report.dropped.keys() == {"roi_heads.box_head.fc1.weight", "iteration"}
    with pytest.raises(UserError, match="mask_rcnn.pkl.*rel_pos=decomposed.*use_abs_pos=True"):
        load_weights(Detector(), path)


def test_a_zoo_file_of_another_network_is_refused(tmp_path):
    state = {"backbone.bottom_up.res2.0.conv1.weight": torch.ones(3)}
    with pytest.raises(UserError, match="R-50.pkl"):
        read_checkpoint(zoo_file(tmp_path / "R-50.pkl", state))
    (tmp_path / "blobs.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": 1}}))
    with pytest.raises(UserError, match="blobs.pkl"):
        read_checkpoint(tmp_path / "blobs.pkl")
