"""Parameter groups: every parameter once, with the decay that the recipe gives it."""

import pytest
import torch
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import get_default_optimizer_params
from helpers.common import ROOT

from lomar_det.config.lazy import instantiate_section, load_config
from lomar_det.errors import UserError
from lomar_det.modeling import layer_decay_params
from lomar_det.modeling.build import build_model

LR, WD, RATE = 1e-4, 0.1, 0.7


def detector(*overrides, name="mask_rcnn_lomar_vit_b_25ep"):
    cfg = load_config(ROOT / "configs" / "coco" / f"{name}.py", list(overrides))
    with torch.device("meta"):
        return cfg, build_model(cfg)


def by_name(model, groups) -> dict[str, tuple[float, float]]:
    """Parameter name -> (lr, weight decay); fails where one is in two groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[parameter] not in settings
            settings[names[parameter]] = group["lr"], group["weight_decay"]
    return settings


def test_every_parameter_is_in_one_group_with_its_decay():
    _, model = detector()
    settings = by_name(model, layer_decay_params(model, LR))
    assert settings.keys() == dict(model.named_parameters()).keys()
    expected = {
        "backbone.net.patch_embed.proj.weight": (RATE**13, WD),
        "backbone.net.blocks.0.attn.rpe_k.lookup_table_weight": (RATE**12, 0),
        "backbone.net.blocks.0.attn.qkv.weight": (RATE**12, WD),
        "backbone.net.blocks.11.attn.rpe_k.lookup_table_weight": (RATE, 0),
        "backbone.net.blocks.11.norm1.weight": (RATE, 0),
        "backbone.net.blocks.11.mlp.fc1.bias": (RATE, WD),
        "backbone.simfp_2.0.weight": (1, WD),
        "roi_heads.box_head.fc1.weight": (1, WD),
    }
    for name, (factor, weight_decay) in expected.items():
        assert settings[name] == (pytest.approx(LR * factor), weight_decay), name


def test_the_baseline_has_the_groups_of_vitdets_recipe():
    _, model = detector(name="mask_rcnn_mae_vit_b_25ep")
    theirs = get_default_optimizer_params(
        model,
        base_lr=LR,
        weight_decay=WD,
        weight_decay_norm=0.0,
        lr_factor_func=lambda name: get_vit_lr_decay_rate(name, RATE, 12),
        overrides={"pos_embed": {"weight_decay": 0.0}},
    )
    assert by_name(model, layer_decay_params(model, LR)) == by_name(model, theirs)


def test_the_vitae_ports_weight_decay():
    settings = ["model.backbone.net.rel_pos=decomposed", "model.backbone.net.use_abs_pos=True"]
    cfg, model = detector(*settings, name="mask_rcnn_lomar_vit_b_vitae_25ep")
    groups = by_name(model, instantiate_section(cfg, "optimizer.params", model=model))
    for name, parameter in model.named_parameters():
        # the port's rule, besides its names: whatever is a vector
        is_table = name.endswith(("pos_embed", "rel_pos_h", "rel_pos_w"))
        assert groups[name][1] == (0 if parameter.dim() == 1 or is_table else WD), name


def test_frozen_parameters_are_left_out():
    _, model = detector("model.backbone.net.freeze_at=4")
    settings = by_name(model, layer_decay_params(model, LR))
    frozen = ("backbone.net.patch_embed.", *(f"backbone.net.blocks.{i}." for i in range(3)))
    left_out = dict(model.named_parameters()).keys() - settings.keys()
    assert left_out == {n for n, _ in model.named_parameters() if n.startswith(frozen)}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        layer_decay_params(model, LR)


def test_a_decay_over_other_layers_than_the_models_is_refused():
    _, model = detector()
    with pytest.raises(UserError, match="num_layers=24.* 12 "):
        layer_decay_params(model, LR, num_layers=24)
    with pytest.raises(UserError, match="num_layers=.* 0 "):
        layer_decay_params(torch.nn.Linear(2, 2), LR)
