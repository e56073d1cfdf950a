"""From file to file: nothing is lost on a way back, and others' models compute the same."""

import argparse
import json
import runpy
from functools import partial

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import ViT
from helpers.common import ROOT
from helpers.small_models import SMALL, Detector, mae_file, pretrained, zoo_file
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lomar_det.checkpoint import convert_checkpoint, load_weights, read_state_dict, save_backbone
from lomar_det.checkpoint.serialization import load_plain, save_atomically
from lomar_det.errors import UserError
from lomar_det.layers import TokenGrid
from lomar_det.modeling import LoMaRViT
from lomar_pretrain import MAE, LoMaR, VisionTransformerClassifier

META = {"embed_dim": 24, "num_heads": 2, "method": "lomar", "epochs": 7, "img_size": [112, 112]}


def assert_same(first: dict, second: dict):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def official_lomar(path, embed_dim=24):
    """The layout of the released file."""
    model = pretrained(embed_dim=embed_dim)
    state = model.state_dict() | {"pos_embed": torch.randn(1, 50, embed_dim)}
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 9}, path)
    return state


def test_official_lomar_becomes_a_backbone_file(tmp_path):
    state = official_lomar(tmp_path / "official.pth")
    text = convert_checkpoint(tmp_path / "official.pth", tmp_path / "b.safetensors")
    tensors, meta = read_state_dict(tmp_path / "b.safetensors")
    parts = ("cls_token", "patch_embed.", "blocks.", "norm.")
    assert_same(tensors, {k: v for k, v in state.items() if k.startswith(parts)})
    assert meta == {
        "patch_size": 16,
        "in_chans": 3,
        "embed_dim": 24,
        "depth": 3,
        "num_heads": 2,
        "mlp_ratio": 4.0,
        "rel_pos": "irpe",
        "abs_pos": False,
        "img_size": [112, 112],
        "method": "lomar",
        "converted_from": "official.pth",
        "code_version": meta["code_version"],
    }
    assert all(word in text for word in ("b.safetensors", "44", "pos_embed", "encoder_pred.weight"))
    load_weights(Detector(), tmp_path / "b.safetensors")


@pytest.mark.parametrize("there, back", [(".pth", ".safetensors"), (".safetensors", ".pth")])
def test_formats_convert_into_each_other_with_meta(tmp_path, there, back):
    save_backbone(tmp_path / "b.pth", pretrained().state_dict(), META)
    convert_checkpoint(tmp_path / f"b{there}", tmp_path / f"c{back}")
    convert_checkpoint(tmp_path / f"c{back}", tmp_path / f"d{there}")
    for name in (f"c{back}", f"d{there}"):
        data = load_plain(tmp_path / name)
        assert data["meta"] == META
        assert_same(data["model"], load_plain(tmp_path / "b.pth")["model"])


def test_lomar_there_and_back(tmp_path):
    """As official code writes it: all that the backbone file kept, and positions to ignore."""
    state = official_lomar(tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "b.pth")
    convert_checkpoint(tmp_path / "b.pth", tmp_path / "l.pth", "lomar")
    backbone, again = (load_plain(tmp_path / name)["model"] for name in ("b.pth", "l.pth"))
    assert again.pop("pos_embed").shape == state["pos_embed"].shape
    assert_same(again, backbone)
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "whole.pth", "lomar")
    whole = load_plain(tmp_path / "whole.pth")["model"]
    assert whole.keys() == state.keys()
    model = LoMaR(img_size=112, **SMALL)
    model.load_state_dict(whole)  # strict
    assert torch.equal(model.encoder_pred.weight, state["encoder_pred.weight"])


def test_only_the_encoder_of_asymmetric_lomar_is_for_other_code(tmp_path):
    """Official LoMaR has no decoder, and would refuse the file or leave the decoder out."""
    decoder = dict(decoder_depth=1, decoder_embed_dim=16, decoder_num_heads=2)
    model = LoMaR(img_size=112, **decoder, **SMALL)
    whole = {"model": model.state_dict(), "meta": model.architecture}
    torch.save(whole, tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")
    backbone = load_plain(tmp_path / "b.pth")["model"]
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "l.pth", "lomar")
    written = load_plain(tmp_path / "l.pth")["model"]
    written.pop("pos_embed")  # which official code holds and does not use
    assert_same(written, backbone)
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "same.pth", "same")
    assert_same(load_plain(tmp_path / "same.pth")["model"], model.state_dict())


def test_mae_there_and_back(tmp_path):
    mae = mae_file(tmp_path / "mae.pth")
    convert_checkpoint(tmp_path / "mae.pth", tmp_path / "m.safetensors", "mae")
    assert_same(load_file(tmp_path / "m.safetensors"), mae.state_dict())
    convert_checkpoint(tmp_path / "m.safetensors", tmp_path / "b.pth", num_heads=2)
    assert load_plain(tmp_path / "b.pth")["meta"]["method"] == "mae"
    convert_checkpoint(tmp_path / "b.pth", tmp_path / "again.pth", "mae")
    again = load_plain(tmp_path / "again.pth")["model"]
    assert again.keys() == {n for n in mae.state_dict() if "decoder" not in n} - {"mask_token"}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_pretraining_becomes_a_timm_vit(tmp_path, suffix):
    """Loads strictly, and gives the features of the encoder it came from."""
    source = MAE(img_size=64, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, **SMALL)
    save_backbone(tmp_path / "b.pth", source.state_dict(), source.architecture)
    target = tmp_path / f"timm{suffix}"
    convert_checkpoint(tmp_path / "b.pth", target, "timm")
    vit = VisionTransformer(img_size=64, num_classes=0, **SMALL)
    vit.load_state_dict(load_file(target) if suffix == ".safetensors" else torch.load(target))
    images = torch.randn(2, 3, 64, 64)
    patches = source.patch_embed(images) + source.pos_embed[:, 1:]
    tokens = source.forward_blocks(source.with_cls_token(patches), TokenGrid(4, 4, True))
    with torch.no_grad():
        torch.testing.assert_close(
            vit.eval().forward_features(images), source.norm(tokens), atol=1e-5, rtol=1e-5
        )
    convert_checkpoint(target, tmp_path / "back.pth", num_heads=2)
    assert_same(load_plain(tmp_path / "back.pth")["model"], load_plain(tmp_path / "b.pth")["model"])


def test_a_classifier_becomes_a_timm_classifier(tmp_path):
    source = VisionTransformerClassifier(
        img_size=64, num_classes=7, rel_pos=False, abs_pos=True, **SMALL
    ).eval()
    nn.init.normal_(source.head.weight)
    torch.save({"model": source.state_dict()}, tmp_path / "c.pth")
    convert_checkpoint(tmp_path / "c.pth", tmp_path / "timm.pth", "timm")
    vit = VisionTransformer(img_size=64, num_classes=7, global_pool="avg", **SMALL).eval()
    vit.load_state_dict(torch.load(tmp_path / "timm.pth"))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(vit(images), source(images), atol=1e-5, rtol=1e-5)


def vits():
    """Ours and detectron2's, built alike."""
    settings = SMALL | dict(
        img_size=64, pretrain_img_size=64, window_size=3, window_block_indexes=[0], use_abs_pos=True
    )
    norm = partial(nn.LayerNorm, eps=1e-6)
    models = (
        LoMaRViT(rel_pos="decomposed", **settings),
        ViT(use_rel_pos=True, norm_layer=norm, **settings),
    )
    for model in models:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return models


class Detector2(nn.Module):
    """What detectron2 calls the parts of a detector."""

    def __init__(self, net):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.net = net


def test_detectron2_loads_ours_and_ours_detectron2s(tmp_path):
    images = torch.randn(1, 3, 96, 64)
    ours, theirs = vits()
    torch.save(ours.state_dict(), tmp_path / "ours.pth")
    convert_checkpoint(tmp_path / "ours.pth", tmp_path / "d2.pth", "detectron2")
    DetectionCheckpointer(Detector2(theirs)).load(str(tmp_path / "d2.pth"))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)
    ours, theirs = vits()
    path = zoo_file(tmp_path / "zoo.pkl", Detector2(theirs).state_dict())
    convert_checkpoint(path, tmp_path / "b.safetensors")
    assert read_state_dict(tmp_path / "b.safetensors")[1]["rel_pos"] == "decomposed"
    load_weights(ours, tmp_path / "b.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


def test_whole_detectors_keep_all_their_parts(tmp_path):
    source = Detector(rel_pos="decomposed", use_abs_pos=True, pretrain_img_size=64)
    state = source.state_dict()
    run = {"model": state, "trainer": {"x": torch.ones(3)}, "meta": {"classes": ["tree"]}}
    save_atomically(run, tmp_path / "run.pth")
    for layout in ("same", "detectron2"):
        target = tmp_path / f"{layout}.safetensors"
        convert_checkpoint(tmp_path / "run.pth", target, layout)
        assert load_plain(target)["meta"] == {"classes": ["tree"]}
        assert_same(load_plain(target)["model"], state)
    convert_checkpoint(tmp_path / "run.pth", tmp_path / "encoder.pth")
    assert not [n for n in load_plain(tmp_path / "encoder.pth")["model"] if "simfp" in n]


@pytest.mark.parametrize("layout", ["timm", "mae", "detectron2"])
def test_irpe_cannot_leave(tmp_path, layout):
    official_lomar(tmp_path / "official.pth")
    with pytest.raises(UserError, match="official.pth.*iRPE"):
        convert_checkpoint(tmp_path / "official.pth", tmp_path / "t.pth", layout)
    assert not (tmp_path / "t.pth").exists()


@pytest.mark.parametrize("layout", ["timm", "mae", "lomar"])
def test_a_detectors_encoder_is_no_whole_vit(tmp_path, layout):
    settings = dict(rel_pos="none", use_abs_pos=True, pretrain_img_size=64)
    torch.save(Detector(**settings).state_dict(), tmp_path / "d.pth")
    with pytest.raises(UserError, match="d.pth.*cls_token"):
        convert_checkpoint(tmp_path / "d.pth", tmp_path / "t.pth", layout)
    torch.save(Detector(**settings | {"rel_pos": "decomposed"}).state_dict(), tmp_path / "d.pth")
    with pytest.raises(UserError, match="d.pth.*decomposed"):
        convert_checkpoint(tmp_path / "d.pth", tmp_path / "t.pth", layout)


def test_heads_are_inferred_asked_for_or_usual(tmp_path):
    mae_file(tmp_path / "mae.pth")
    with pytest.raises(UserError, match="--num-heads"):
        convert_checkpoint(tmp_path / "mae.pth", tmp_path / "b.pth")
    with pytest.raises(UserError, match="--num-heads"):
        convert_checkpoint(tmp_path / "mae.pth", tmp_path / "b.pth", num_heads=5)
    official_lomar(tmp_path / "lomar.pth")
    with pytest.raises(UserError, match="--num-heads"):
        convert_checkpoint(tmp_path / "lomar.pth", tmp_path / "b.pth", num_heads=3)
    tiny = VisionTransformer(img_size=32, embed_dim=192, depth=1, num_heads=3)
    torch.save(tiny.state_dict(), tmp_path / "tiny.pth")
    convert_checkpoint(tmp_path / "tiny.pth", tmp_path / "b.pth")
    assert load_plain(tmp_path / "b.pth")["meta"]["num_heads"] == 3


def test_another_patch_size_keeps_what_patches_look_like(tmp_path):
    mae = MAE(**SMALL | dict(patch_size=14, img_size=56), decoder_embed_dim=16, decoder_depth=1)
    save_backbone(tmp_path / "b14.pth", mae.state_dict(), mae.architecture)
    convert_checkpoint(tmp_path / "b14.pth", tmp_path / "b16.pth", patch_size=16)
    tensors, meta = read_state_dict(tmp_path / "b16.pth")
    assert meta == mae.architecture | {"patch_size": 16, "img_size": [64, 64]}
    net = LoMaRViT(
        rel_pos="none", use_abs_pos=True, window_block_indexes=[], pretrain_img_size=64, **SMALL
    )
    load_weights(net, tmp_path / "b16.pth")
    assert torch.equal(tensors["pos_embed"], mae.pos_embed)
    smooth = nn.functional.interpolate(torch.randn(1, 3, 2, 2), 14, mode="bilinear")
    larger = nn.functional.interpolate(smooth, 16, mode="bicubic", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(
            net.patch_embed(larger), mae.patch_embed(smooth), atol=1e-4, rtol=1e-3
        )
    with pytest.raises(UserError, match="--to same"):
        convert_checkpoint(tmp_path / "b14.pth", tmp_path / "c.pth", "same", patch_size=16)


def test_dtype_is_cast_where_it_fits(tmp_path):
    state = pretrained().state_dict()
    save_backbone(tmp_path / "b.pth", state, META)
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        convert_checkpoint(tmp_path / "b.pth", tmp_path / f"{name}.safetensors", dtype=name)
        tensors, _ = read_state_dict(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(tensors[n], state[n].to(dtype)) for n in tensors)
    load_weights(Detector(), tmp_path / "fp16.safetensors")
    state["blocks.0.norm1.bias"][0] = 1e6
    save_backbone(tmp_path / "large.pth", state, META)
    with pytest.raises(UserError, match="blocks.0.norm1.bias.*fp16"):
        convert_checkpoint(tmp_path / "large.pth", tmp_path / "x.pth", dtype="fp16")


def test_targets_are_checked_first_and_never_overwritten_silently(tmp_path):
    official_lomar(tmp_path / "official.pth")
    target = tmp_path / "b.pth"
    target.write_text("precious")
    for path, words in (
        (target, "b.pth.*--force"),
        (tmp_path / "b.bin", "b.bin.*.safetensors"),
        (tmp_path / "nowhere" / "b.pth", "nowhere"),
    ):
        with pytest.raises(UserError, match=words):
            convert_checkpoint(tmp_path / "no such file", path)
    assert target.read_text() == "precious"
    convert_checkpoint(tmp_path / "official.pth", target, force=True)
    assert load_plain(target)["meta"]["rel_pos"] == "irpe"
    convert_checkpoint(target, target, dtype="bf16", force=True)  # onto itself
    assert load_plain(target)["model"]["cls_token"].dtype == torch.bfloat16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.pth", "official.pth"]


def test_safetensors_metadata_is_readable_by_others(tmp_path):
    save_backbone(tmp_path / "b.pth", pretrained().state_dict(), META)
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and json.loads(metadata["meta"]) == META


def test_the_command(tmp_path, monkeypatch, capsys):
    official_lomar(tmp_path / "official.pth")
    monkeypatch.chdir(tmp_path)
    tool = str(ROOT / "tools" / "convert_checkpoint.py")
    monkeypatch.setattr("sys.argv", [tool, "official.pth", "b.pth", "--dtype", "bf16"])
    runpy.run_path(tool, run_name="__main__")
    assert "b.pth" in capsys.readouterr().out
    assert load_plain("b.pth")["model"]["norm.bias"].dtype == torch.bfloat16
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(tool, run_name="__main__")
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: b.pth") and "\n" not in error
