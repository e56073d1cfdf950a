"""The encoders as timm models."""

import pytest
import timm
import torch
from helpers.small_models import randomise
from timm.optim import param_groups_layer_decay

from lomar_det.checkpoint import save_backbone
from lomar_det.errors import UserError
from lomar_pretrain import LoMaR, VisionTransformerClassifier

NAME = "lomar_vit_tiny_patch16"
SMALL = dict(embed_dim=24, depth=4, num_heads=2, img_size=32, patch_size=4)


def test_all_sizes_are_registered():
    names = set(timm.list_models("lomar_vit_*"))
    sizes = ("tiny_patch16", "small_patch16", "base_patch16", "large_patch16", "huge_patch14")
    assert names == {f"lomar_vit_{size}" for size in sizes}
    with torch.device("meta"):
        base = timm.create_model("lomar_vit_base_patch16", num_classes=0)
    assert base.num_features == 768 and len(base.blocks) == 12


def test_logits_are_those_of_the_classifier():
    literal = randomise(VisionTransformerClassifier(**SMALL, num_classes=5)).eval()
    model = timm.create_model(NAME, num_classes=5, **SMALL).eval()
    model.load_state_dict(literal.state_dict())
    images = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(model(images), literal(images))
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 1 + 8 * 12, 24)
    pooled = model.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(pooled, literal.forward_features(images))


def test_features_only_gives_maps_of_any_size():
    model = timm.create_model(NAME, features_only=True, out_indices=[1, -1], **SMALL)
    randomise(model).eval()
    assert model.feature_info.channels() == [24, 24] and model.feature_info.reduction() == [4, 4]
    images = torch.randn(1, 3, 40, 24)
    features = model(images)
    assert [tuple(f.shape) for f in features] == [(1, 24, 10, 6)] * 2
    whole = timm.create_model(NAME, num_classes=0, **SMALL).eval()
    missing, unexpected = whole.load_state_dict(model.model.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("fc_norm") for name in missing)
    tokens = whole.forward_features(images)[:, 1:]
    torch.testing.assert_close(features[-1], tokens.transpose(1, 2).reshape(1, 24, 10, 6))


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_backbone_file_loads(tmp_path, suffix, features_only):
    pretrained = randomise(LoMaR(**SMALL, window_size=3))
    save_backbone(tmp_path / "backbone_final.pth", pretrained.state_dict(), {})
    overlay = {"file": str(tmp_path / f"backbone_final{suffix}")}
    options = dict(pretrained=True, pretrained_cfg_overlay=overlay, features_only=features_only)
    model = timm.create_model(NAME, **options, **SMALL)
    loaded = (model.model if features_only else model).state_dict()
    for name, value in pretrained.state_dict().items():
        if name.startswith(("blocks", "patch_embed", "cls_token")):
            assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize("change", [{"depth": 2}, {"depth": 6}])
def test_file_of_another_architecture_is_refused(tmp_path, change):
    path = tmp_path / "backbone_final.pth"
    save_backbone(path, LoMaR(**SMALL | change, window_size=3).state_dict(), {})
    overlay = {"file": str(path)}
    with pytest.raises(UserError, match="blocks"):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)


def test_what_is_impossible_is_refused():
    with pytest.raises(ValueError, match="in_chans"):
        timm.create_model(NAME, in_chans=1, **SMALL)
    with pytest.raises(ValueError, match="global_pool"):
        timm.create_model(NAME, global_pool="max", **SMALL)


def test_gradient_checkpointing_changes_nothing():
    model = randomise(timm.create_model(NAME, num_classes=3, **SMALL)).train()
    images = torch.randn(2, 3, 32, 32)
    model(images).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_layer_decay_takes_every_parameter_once_with_its_block():
    model = timm.create_model(NAME, num_classes=3, **SMALL)
    groups = param_groups_layer_decay(
        model, 0.05, model.no_weight_decay(), layer_decay=0.5, verbose=False
    )
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == sum(len(group["params"]) for group in groups)
    assert scale.keys() == {id(p) for p in model.parameters() if p.requires_grad}
    for i, block in enumerate(model.blocks):
        assert {scale[id(p)] for p in block.parameters()} == {0.5 ** (len(model.blocks) - i)}
    assert scale[id(model.head.weight)] == scale[id(model.fc_norm.weight)] == 1
    assert scale[id(model.patch_embed.proj.weight)] == scale[id(model.cls_token)] == 0.5**5
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    tables = [p for name, p in model.named_parameters() if name.endswith("lookup_table_weight")]
    assert {decay[id(p)] for p in [*tables, model.cls_token, model.head.bias]} == {0.0}
    assert decay[id(model.head.weight)] == 0.05
