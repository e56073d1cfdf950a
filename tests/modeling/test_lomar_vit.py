"""The backbone: against the pretraining encoder, and against detectron2's own ViT."""

from functools import partial

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, SimpleFeaturePyramid, ViT, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from helpers.small_models import randomise
from torch import nn

import lomar_det
from lomar_det.modeling import LoMaRFeaturePyramid, LoMaRViT, add_lomar_config, window_block_indexes
from lomar_pretrain import LoMaR, WindowSample

SMALL = dict(patch_size=4, embed_dim=24, depth=4, num_heads=2)


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


def baselines(rel_pos=True, drop_path_rate=0.0, patch_size=4):
    """detectron2's ViT and ours with the same weights, in double precision."""
    settings = SMALL | {"window_size": 3, "window_block_indexes": [0, 1], "patch_size": patch_size}
    settings |= {"img_size": 8 * patch_size, "pretrain_img_size": 4 * patch_size}
    settings |= {"drop_path_rate": drop_path_rate}
    norm = partial(nn.LayerNorm, eps=1e-6)
    theirs = randomise(ViT(**settings, use_rel_pos=rel_pos, norm_layer=norm).double())
    kind = "decomposed" if rel_pos else "none"
    ours = LoMaRViT(**settings, rel_pos=kind, use_abs_pos=True).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def assert_same_outputs_and_gradients(ours, theirs, image):
    outputs, grads = [], []
    for model in (ours, theirs):
        torch.manual_seed(0)  # for the paths that are dropped
        outputs.append(model(image))
        generator = torch.Generator().manual_seed(1)
        sum(
            (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
            for out in outputs[-1].values()
        ).backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert outputs[0].keys() == outputs[1].keys() and grads[0].keys() == grads[1].keys()
    for name, out in outputs[0].items():
        torch.testing.assert_close(out, outputs[1][name], msg=name)
    for name, grad in grads[0].items():
        assert grad is not None and grad.abs().max() > 0, name
        torch.testing.assert_close(grad, grads[1][name], msg=name)


# 32 x 32 is what the tables are laid out for; windows of 3 pad 8 x 8 tokens to 9 x 9
@pytest.mark.parametrize("size", [(32, 32), (40, 24), (8, 52)])
@pytest.mark.parametrize("rel_pos", [True, False])
def test_baseline_equals_detectron2_vit(size, rel_pos):
    """Forward and gradients, windows that need padding, other sizes than the tables' included."""
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    assert_same_outputs_and_gradients(*baselines(rel_pos), image)


def test_baseline_drops_the_paths_that_detectron2_drops():
    ours, theirs = baselines(drop_path_rate=0.5)
    image = torch.randn(4, 3, 24, 24, dtype=torch.float64)
    assert_same_outputs_and_gradients(ours.train(), theirs.train(), image)
    assert not torch.equal(ours.eval()(image)["last_feat"], ours.train()(image)["last_feat"])


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


def saved_for_backward(model, image):
    """Bytes of activations that a forward pass keeps, parameters not counted."""
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        feature = model(image)["last_feat"]
    return sum(kept.values()), feature


@pytest.mark.parametrize("act_checkpoint", [False, True])
def test_frozen_stages_get_no_gradients_and_keep_nothing(act_checkpoint):
    image = torch.randn(2, 3, 20, 16)
    memory = []
    for freeze_at in range(6):
        model = randomise(
            LoMaRViT(
                window_size=3,
                window_block_indexes=[0, 2],
                drop_path_rate=0.2,
                use_abs_pos=True,
                use_act_checkpoint=act_checkpoint,
                freeze_at=freeze_at,
                **SMALL,
            )
        ).train()
        kept, feature = saved_for_backward(model, image)
        memory.append(kept)
        frozen = [("patch_embed.", "pos_embed"), *((f"blocks.{i}.",) for i in range(4))][:freeze_at]
        frozen = tuple(prefix for stage in frozen for prefix in stage)
        if freeze_at <= 4:
            feature.sum().backward()
        for name, parameter in model.named_parameters():
            is_frozen = freeze_at > 0 and name.startswith(frozen)
            assert parameter.requires_grad != is_frozen, name
            assert (parameter.grad is None) == is_frozen, name
    assert memory[-1] == 0 and not feature.requires_grad
    assert memory == sorted(memory, reverse=True) and len(set(memory[1:])) == 5


def test_frozen_blocks_drop_no_paths():
    settings = SMALL | {"drop_path_rate": 0.9, "window_block_indexes": [0], "window_size": 3}
    image = torch.randn(4, 3, 16, 16)
    frozen = randomise(LoMaRViT(**settings, freeze_at=5)).train()
    assert torch.equal(frozen(image)["last_feat"], frozen(image)["last_feat"])
    assert frozen.training and not any(block.training for block in frozen.blocks)
    part = LoMaRViT(**settings, freeze_at=3).train()
    assert [block.training for block in part.blocks] == [False, False, True, True]
    assert not any(block.training for block in part.eval().blocks)


def test_global_blocks_are_vitdets():
    assert window_block_indexes(12) == [0, 1, 3, 4, 6, 7, 9, 10]
    assert sorted(set(range(24)) - set(window_block_indexes(24))) == [5, 11, 17, 23]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"window_block_indexes": [4]}, "window_block_indexes"),
        ({"window_block_indexes": [0], "window_size": 0}, "window_size"),
        ({"rel_pos": "x"}, "rel_pos"),
        ({"freeze_at": 6}, "freeze_at.* 6"),
    ],
)
def test_contradictions_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        LoMaRViT(**(SMALL | {"window_block_indexes": []} | settings))


def test_odd_image_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="30x32.*32x32"):
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
        torch.testing.assert_close(a[name], b[name])


@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
def test_baseline_with_pyramid_equals_detectron2s(size):
    """The whole backbone of ViTDet: the same names, features and gradients."""
    ours, theirs = baselines(patch_size=16)
    theirs = randomise(pyramid(theirs, SimpleFeaturePyramid)).double()
    ours = pyramid(ours).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    assert_same_outputs_and_gradients(ours, theirs, image)


def test_patches_that_make_no_pyramid_are_refused():
    net = LoMaRViT(window_block_indexes=[], **(SMALL | {"patch_size": 14}))
    with pytest.raises(ValueError, match="14.*patch size 16"):
        pyramid(net)


def test_padding_key_is_the_one_that_is_read():
    constraints = pyramid().padding_constraints
    assert constraints == {"size_divisibility": 32, "square_size": 0}
    assert pyramid(square_pad=64).padding_constraints["square_size"] == 64
    with pytest.raises(ValueError, match="square_pad.* 40"):
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
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    cfg.MODEL.LOMAR.NUM_GLOBAL_BLOCKS = 2
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert [block.attn.window_size for block in backbone.net.blocks] == [14, 0, 14, 0]
    assert [b.norm1.weight.requires_grad for b in backbone.net.blocks] == [False, True, True, True]
    assert lomar_det.modeling.LoMaRViT is LoMaRViT
