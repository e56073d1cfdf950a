"""Weights from elsewhere: what arrives, what is dropped and why, what is refused."""

import argparse

import pytest
import torch
from helpers.small_models import SMALL, Detector, mae_file, pretrained
from torch import nn

from lomar_det.checkpoint import (
    load_encoder_weights,
    load_weights,
    read_state_dict,
    reinit_blocks,
    save_backbone,
)
from lomar_det.checkpoint.serialization import save_atomically
from lomar_det.errors import UserError
from lomar_det.layers import resize_pos_embed
from lomar_det.modeling import LoMaRViT
from lomar_pretrain import MAE, LoMaR, VisionTransformerClassifier


def assert_encoder_arrived(detector, model):
    own = detector.backbone.net.state_dict()
    for name, value in model.state_dict().items():
        if name in own:
            wanted = value[..., :49] if name.endswith("lookup_table_weight") else value
            assert torch.equal(own[name], wanted), name
    assert all(name in model.state_dict() for name in own)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_backbone_file_fills_the_encoder_and_says_so(tmp_path, suffix):
    model, detector = pretrained(), Detector()
    save_backbone(tmp_path / "b.pth", model.state_dict(), {"epochs": 3})
    report = load_weights(detector, tmp_path / f"b{suffix}")
    assert_encoder_arrived(detector, model)
    assert report.dropped.keys() == {"cls_token", "norm.weight", "norm.bias"}
    assert "roi_heads.weight" in report.initialised
    assert "cls_token" in str(report)


def test_backbone_file_holds_plain_data_and_the_encoder_only(tmp_path):
    save_backbone(tmp_path / "b.pth", pretrained().state_dict(), {"method": "lomar"})
    tensors, meta = read_state_dict(tmp_path / "b.pth")
    assert meta == {"method": "lomar"}
    assert not [name for name in tensors if "mask_token" in name or "encoder_pred" in name]
    assert torch.load(tmp_path / "b.pth", weights_only=True).keys() == {"model", "meta"}


def test_official_file_with_namespace_loads(tmp_path):
    model, detector = pretrained(), Detector()
    state = model.state_dict() | {"pos_embed": torch.zeros(1, 50, 24)}
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "official.pth")
    report = load_weights(detector, tmp_path / "official.pth")
    assert_encoder_arrived(detector, model)
    assert report.dropped.keys() >= {"pos_embed", "encoder_pred.weight"}


def test_mae_file_needs_a_model_without_irpe(tmp_path):
    mae = mae_file(tmp_path / "mae.pth")
    detector = Detector(rel_pos="none", use_abs_pos=True, pretrain_img_size=64)
    report = load_weights(detector, tmp_path / "mae.pth")
    own = detector.backbone.net
    assert torch.equal(own.pos_embed, mae.pos_embed)
    assert torch.equal(own.blocks[2].mlp.fc2.weight, mae.blocks[2].mlp.fc2.weight)
    assert not [name for name in report.loaded if "decoder" in name]


def test_mae_file_fills_the_vitdet_baseline(tmp_path):
    mae = mae_file(tmp_path / "mae.pth")
    detector = Detector(rel_pos="decomposed", use_abs_pos=True, pretrain_img_size=64)
    report = load_weights(detector, tmp_path / "mae.pth")
    assert torch.equal(
        detector.backbone.net.blocks[0].attn.qkv.weight, mae.blocks[0].attn.qkv.weight
    )
    assert "backbone.net.blocks.0.attn.rel_pos_h" in report.initialised


def test_detector_for_other_classes_lends_all_but_its_heads(tmp_path):
    source, detector = Detector(), Detector()
    source.roi_heads = nn.Linear(4, 9)
    torch.save({"model": source.state_dict()}, tmp_path / "d.pth")
    report = load_weights(detector, tmp_path / "d.pth")
    assert (
        report.dropped.keys() == report.initialised.keys() == {"roi_heads.weight", "roi_heads.bias"}
    )


def test_whole_detector_fills_everything(tmp_path):
    source, detector = Detector(), Detector()
    torch.save({"model": source.state_dict()}, tmp_path / "d.pth")
    assert not load_weights(detector, tmp_path / "d.pth").initialised
    for name, value in source.state_dict().items():
        assert torch.equal(detector.state_dict()[name], value)


def refuses(model, path, words=None):
    """Names the file and the words, and leaves the model as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=words) as error:
        load_weights(model, path)
    assert path.name in str(error.value)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"patch_size": 8, "img_size": 56}, "--patch-size 16"),
        ({"depth": 5}, "model.backbone.net.depth=5"),
        ({"num_heads": 4}, "num_heads"),
        ({"mlp_ratio": 2.0}, "mlp_ratio"),
        ({"depth": 2, "embed_dim": 32}, "embed_dim=32 .*depth=2"),
    ],
)
def test_encoder_of_another_shape_fails_and_changes_nothing(tmp_path, settings, words):
    model = LoMaR(**({"img_size": 112} | SMALL | settings))
    torch.save({"model": model.state_dict()}, tmp_path / "other.pth")
    refuses(Detector(), tmp_path / "other.pth", words)


IRPE = {}
IRPE_ABS = {"use_abs_pos": True, "pretrain_img_size": 64}
NO_POSITIONS = {"rel_pos": "none"}
DECOMPOSED = {"rel_pos": "decomposed", "use_abs_pos": True, "pretrain_img_size": 64}


@pytest.mark.parametrize(
    "theirs, ours, remedy",
    [
        (IRPE, IRPE_ABS, "rel_pos=irpe and model.backbone.net.use_abs_pos=False"),
        (IRPE_ABS, IRPE, "use_abs_pos=True"),
        (IRPE, DECOMPOSED, "rel_pos=irpe and"),
        (DECOMPOSED, IRPE, "rel_pos=decomposed and model.backbone.net.use_abs_pos=True"),
        (DECOMPOSED, DECOMPOSED | {"rel_pos": "none"}, "rel_pos=decomposed"),
        (DECOMPOSED, DECOMPOSED | {"use_abs_pos": False}, "use_abs_pos=True"),
        (NO_POSITIONS, IRPE, "use_abs_pos=False"),
    ],
)
def test_another_position_encoding_names_the_remedy(tmp_path, theirs, ours, remedy):
    torch.save({"model": Detector(**theirs).state_dict()}, tmp_path / "d.pth")
    refuses(Detector(**ours), tmp_path / "d.pth", remedy)


def test_mae_file_in_an_irpe_model_names_the_remedy(tmp_path):
    mae_file(tmp_path / "mae.pth")
    refuses(Detector(), tmp_path / "mae.pth", "rel_pos=decomposed.*use_abs_pos=True")


def test_heads_are_checked_where_meta_names_them(tmp_path):
    mae = MAE(img_size=64, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, **SMALL)
    save_backbone(tmp_path / "b.pth", mae.state_dict(), {"num_heads": 4})
    detector = Detector(rel_pos="none", use_abs_pos=True, pretrain_img_size=64)
    refuses(detector, tmp_path / "b.pth", "num_heads")


def test_unusual_heads_are_pointed_out_where_the_file_is_silent(tmp_path, lomar_log):
    settings = dict(embed_dim=192, rel_pos="none", use_abs_pos=True, pretrain_img_size=64)
    torch.save(Detector(**settings).state_dict(), tmp_path / "d.pth")
    load_weights(Detector(**settings), tmp_path / "d.pth")
    assert "embed_dim 192" in lomar_log.text


def test_positions_of_another_grid_are_resized_and_reported(tmp_path):
    mae = mae_file(tmp_path / "mae.pth")
    detector = Detector(rel_pos="none", use_abs_pos=True, pretrain_img_size=96)
    report = load_weights(detector, tmp_path / "mae.pth")
    assert report.adapted.keys() == {"pos_embed"} and "6x6" in str(report)
    own = detector.backbone.net.pos_embed
    assert torch.equal(own[:, :1], mae.pos_embed[:, :1])
    assert torch.equal(own[:, 1:], resize_pos_embed(mae.pos_embed, (6, 6)))


def test_decomposed_tables_of_another_length_are_interpolated_as_at_run_time(tmp_path):
    source = Detector(img_size=64, **DECOMPOSED)
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.2)
    torch.save({"model": source.state_dict()}, tmp_path / "d.pth")
    detector = Detector(img_size=96, **DECOMPOSED)
    report = load_weights(detector, tmp_path / "d.pth")
    assert "backbone.net.blocks.1.attn.rel_pos_h" in report.adapted
    images = torch.randn(1, 3, 96, 96)  # where the source interpolates its tables by itself
    with torch.no_grad():
        torch.testing.assert_close(detector.backbone(images), source.backbone(images))


def test_foreign_network_fails(tmp_path):
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "linear.pth")
    refuses(Detector(), tmp_path / "linear.pth")


@pytest.mark.parametrize("share, arrives", [(0.04, True), (0.08, False)])
def test_an_incomplete_encoder_fails(tmp_path, share, arrives):
    state = pretrained().state_dict()
    names = [name for name in state if name.startswith("blocks.1.")]
    own = [name for name in state if name.startswith(("blocks.", "patch_embed."))]
    for name in names[: round(share * len(own))]:
        del state[name]
    torch.save(state, tmp_path / "part.pth")
    if arrives:
        report = load_weights(Detector(), tmp_path / "part.pth")
        assert f"backbone.net.{names[0]}" in report.initialised
    else:
        refuses(Detector(), tmp_path / "part.pth", names[0])


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    "value",
    [
        torch.full((24,), torch.nan),
        torch.zeros(24, dtype=torch.int8),
        torch.zeros(24).to_sparse(),
        torch.zeros(24, 1),
        torch.zeros(25),
    ],
    ids=["NaN", "int8", "sparse", "two dimensions", "longer"],
)
def test_a_spoilt_tensor_fails(tmp_path, value):
    state = pretrained().state_dict() | {"blocks.1.norm1.bias": value}
    torch.save({"model": state}, tmp_path / "spoilt.pth")
    refuses(Detector(), tmp_path / "spoilt.pth", "blocks.1.norm1.bias")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda ema: {"trainer": {"iteration": 3, "ema": ema}},
        lambda ema: {"ema": ema},
        lambda ema: {"state_dict_ema": ema},
    ],
    ids=["our runs", "ema", "timm"],
)
def test_averaged_weights_are_taken_when_asked_for(tmp_path, wrap):
    plain, averaged = pretrained(), pretrained()
    state, ema = plain.state_dict(), averaged.state_dict()
    torch.save({"model": state, **wrap(ema)}, tmp_path / "run.pth")
    detector = Detector()
    load_weights(detector, tmp_path / "run.pth")
    assert_encoder_arrived(detector, plain)
    load_weights(detector, tmp_path / "run.pth", ema=True)
    assert_encoder_arrived(detector, averaged)
    torch.save({"model": plain.state_dict()}, tmp_path / "plain.pth")
    with pytest.raises(UserError, match="plain.pth"):
        load_weights(detector, tmp_path / "plain.pth", ema=True)


def test_plain_data_of_a_detector_comes_along(tmp_path):
    data = {"model": Detector().state_dict(), "meta": {"classes": ["tree", "roof"]}}
    save_atomically(data, tmp_path / "d.pth")
    assert read_state_dict(tmp_path / "d.pth")[1] == {"classes": ["tree", "roof"]}
    torch.save({"model": data["model"], "meta": "text"}, tmp_path / "odd.pth")
    assert read_state_dict(tmp_path / "odd.pth")[1] == {}


@pytest.mark.parametrize("content", [torch.ones(2), ["a"], {}, {"model": {1: torch.ones(1)}}])
def test_files_without_tensors_by_name_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match="c.pth"):
        read_state_dict(tmp_path / "c.pth")


def test_continued_pretraining_takes_head_and_all(tmp_path):
    source, model = pretrained(), LoMaR(img_size=112, **SMALL)
    torch.save({"model": source.state_dict()}, tmp_path / "run.pth")
    report = load_encoder_weights(model, tmp_path / "run.pth")
    assert not report.dropped and not report.initialised
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_detectors_encoder_goes_back_into_pretraining(tmp_path):
    source, model = Detector(), LoMaR(img_size=112, **SMALL)
    torch.save({"model": source.state_dict()}, tmp_path / "d.pth")
    report = load_encoder_weights(model, tmp_path / "d.pth")
    table = model.blocks[0].attn.rpe_k.table
    assert torch.equal(table[:, :49], source.backbone.net.blocks[0].attn.rpe_k.table)
    assert not table[:, 49].any()
    assert {"cls_token", "mask_token", "norm.weight"} < report.initialised.keys()
    assert "roi_heads.weight" in report.dropped


def test_a_classifier_starts_from_pretraining_and_keeps_its_head(tmp_path):
    torch.save({"model": pretrained().state_dict()}, tmp_path / "run.pth")
    classifier = VisionTransformerClassifier(img_size=64, num_classes=5, **SMALL)
    report = load_encoder_weights(classifier, tmp_path / "run.pth")
    assert "norm.weight" in report.dropped
    assert set(report.initialised) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    torch.save({"model": classifier.state_dict()}, tmp_path / "tuned.pth")
    other = VisionTransformerClassifier(img_size=64, num_classes=7, **SMALL)
    report = load_encoder_weights(other, tmp_path / "tuned.pth")
    assert "(5, 24)" in report.dropped["head.weight"]
    assert torch.equal(other.fc_norm.weight, classifier.fc_norm.weight)


def test_a_mask_token_of_another_method_stays_out(tmp_path):
    mae = MAE(img_size=64, decoder_embed_dim=24, decoder_depth=1, decoder_num_heads=2, **SMALL)
    nn.init.normal_(mae.mask_token)
    torch.save({"model": mae.state_dict()}, tmp_path / "mae.pth")
    model = LoMaR(img_size=112, rel_pos=False, abs_pos=True, **SMALL)
    report = load_encoder_weights(model, tmp_path / "mae.pth")
    assert "mask_token" in report.dropped and "pos_embed" in report.adapted


def test_remedies_name_the_settings_of_pretraining(tmp_path):
    mae_file(tmp_path / "mae.pth")
    with pytest.raises(UserError, match="model.rel_pos=False.*model.abs_pos=True"):
        load_encoder_weights(LoMaR(img_size=112, **SMALL), tmp_path / "mae.pth")
    torch.save(Detector(**DECOMPOSED).state_dict(), tmp_path / "d.pth")
    with pytest.raises(UserError, match="d.pth.*detector"):
        load_encoder_weights(LoMaR(img_size=112, **SMALL), tmp_path / "d.pth")


@pytest.mark.parametrize("rel_pos", ["irpe", "decomposed"])
def test_upper_blocks_can_start_from_random_weights_again(rel_pos):
    torch.manual_seed(0)
    settings = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2)
    net = LoMaRViT(**settings, rel_pos=rel_pos, window_block_indexes=[])
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    reinit_blocks(net, 2)
    new = LoMaRViT(**settings, rel_pos=rel_pos, window_block_indexes=[]).state_dict()
    for name, value in net.state_dict().items():
        if not name.startswith(("blocks.1.", "blocks.2.")):
            assert (value == 0.5).all(), name
        elif value.ndim < 2 or "rpe_k" in name or "rel_pos" in name:
            assert torch.equal(value, new[name]), name
        else:
            assert value.std().item() == pytest.approx(new[name].std().item(), rel=0.2), name
    with pytest.raises(UserError, match="reinit_blocks=4"):
        reinit_blocks(net, 4)
