"""The backbone: against the pretraining encoder, and against detectron2's own ViT."""

from functools import partial

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SimpleFeaturePyramid, ViT, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

import lomar_det
from lomar_det.modeling import LoMaRFeaturePyramid, LoMaRViT, add_lomar_config, window_block_indexes
from lomar_pretrain import LoMaR, WindowSample

SMALL = dict(patch_size=4, embed_dim=24, depth=4, num_heads=2)


def randomise(model):
    """Zero-initialised tables would hide a mistake in their use."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def test_features_of_one_window_are_the_pretraining_encoders():
    pretrained = randomise(LoMaR(img_size=28, window_size=7, **SMALL))
    backbone = LoMaRViT(img_size=28, window_block_indexes=[0, 2], window_size=7, **SMALL)
    state = {
        name: value[..., :49] if name.endswith("lookup_table_weight") else value
        for name, value in pretrained.state_dict().items()
    }
    loaded = backbone.load_state_dict(state, strict=False)
    assert not loaded.missing_keys
    image = torch.randn(2, 3, 28, 28)
    ids = torch.arange(49).expand(2, 49)
    windows = WindowSample(torch.arange(2), ids, torch.zeros_like(ids, dtype=torch.bool))
    expected = pretrained.encode_windows(image, windows, cls_token=False)  # (2, 49, C)
    feature = backbone(image)["last_feat"]  # (2, C, 7, 7)
    torch.testing.assert_close(feature.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
@pytest.mark.parametrize("rel_pos", [True, False])
def test_baseline_equals_detectron2_vit(size, rel_pos):
    """Forward and gradients, windows that need padding, other sizes than the tables' included."""
    settings = SMALL | {"img_size": 32, "window_size": 3, "window_block_indexes": [0, 1]}
    theirs = ViT(
        **settings,
        pretrain_img_size=16,
        use_rel_pos=rel_pos,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).double()
    randomise(theirs)
    ours = LoMaRViT(
        **settings,
        pretrain_img_size=16,
        rel_pos="decomposed" if rel_pos else "none",
        use_abs_pos=True,
    ).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    a, b = ours(image)["last_feat"], theirs(image)["last_feat"]
    torch.testing.assert_close(a, b)
    weight = torch.randn_like(a)
    for model, out in ((ours, a), (theirs, b)):
        (out * weight).sum().backward()
        assert model.patch_embed.proj.weight.grad is not None
    theirs_grads = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs_grads[name], msg=name)


def test_translation_by_whole_windows_moves_the_features():
    """What iRPE is for: with window attention everywhere, features do not know where they are."""
    backbone = randomise(
        LoMaRViT(img_size=32, window_size=2, window_block_indexes=range(4), **SMALL)
    )
    image = torch.randn(1, 3, 32, 32)
    feature = backbone(image)["last_feat"]
    moved = backbone(image.roll((8, 16), (2, 3)))["last_feat"]
    torch.testing.assert_close(moved, feature.roll((2, 4), (2, 3)), rtol=1e-4, atol=1e-4)


def test_checkpointed_activations_change_nothing():
    plain = randomise(LoMaRViT(window_size=3, window_block_indexes=[0], **SMALL))
    saving = LoMaRViT(window_size=3, window_block_indexes=[0], use_act_checkpoint=True, **SMALL)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 20, 16)
    grads = []
    for model in (plain, saving):
        model.train()(image)["last_feat"].square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_global_blocks_are_vitdets():
    assert window_block_indexes(12) == [0, 1, 3, 4, 6, 7, 9, 10]
    assert sorted(set(range(24)) - set(window_block_indexes(24))) == [5, 11, 17, 23]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"window_block_indexes": [4]}, "do not exist in a depth of 4"),
        ({"window_block_indexes": [0], "window_size": 0}, "window_size"),
        ({"rel_pos": "x"}, "rel_pos"),
    ],
)
def test_contradictions_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        LoMaRViT(**(SMALL | {"window_block_indexes": []} | settings))


def test_odd_image_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="30x32 is not a multiple.*pad to 32x32"):
        LoMaRViT(window_block_indexes=[], **SMALL)(torch.zeros(1, 3, 30, 32))


def pyramid(net=None, cls=LoMaRFeaturePyramid, **settings):
    net = net or LoMaRViT(window_size=3, window_block_indexes=[0], **(SMALL | {"patch_size": 16}))
    return cls(
        net,
        in_feature="last_feat",
        out_channels=8,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        **settings,
    )


def test_pyramid_equals_detectron2s():
    ours = pyramid()
    theirs = pyramid(ours.net, SimpleFeaturePyramid)
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 64, 96)
    a, b = ours(image), theirs(image)
    assert list(a) == list(b) == ["p2", "p3", "p4", "p5", "p6"]
    for name in a:
        assert torch.equal(a[name], b[name])


def test_padding_key_is_the_one_that_is_read():
    constraints = pyramid().padding_constraints
    assert constraints == {"size_divisibility": 32, "square_size": 0}
    assert pyramid(square_pad=64).padding_constraints["square_size"] == 64
    with pytest.raises(ValueError, match="square_pad 40"):
        pyramid(square_pad=40)


def test_yacs_route_builds_the_same_modules():
    assert "build_lomar_vit_backbone" in BACKBONE_REGISTRY
    cfg = get_cfg()
    add_lomar_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_lomar_vitdet_backbone"
    cfg.MODEL.LOMAR.EMBED_DIM, cfg.MODEL.LOMAR.DEPTH, cfg.MODEL.LOMAR.NUM_HEADS = 24, 4, 2
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert isinstance(backbone, LoMaRFeaturePyramid) and isinstance(backbone.net, LoMaRViT)
    assert [block.attn.window_size for block in backbone.net.blocks] == [0, 0, 0, 0]
    cfg.MODEL.LOMAR.NUM_GLOBAL_BLOCKS = 2
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert [block.attn.window_size for block in backbone.net.blocks] == [14, 0, 14, 0]
    assert lomar_det.modeling.LoMaRViT is LoMaRViT
