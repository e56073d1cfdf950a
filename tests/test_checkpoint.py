"""Weights from elsewhere: what arrives, what is dropped and why, what is refused."""

import argparse
import pickle

import pytest
import torch
from torch import nn

from lomar_det.checkpoint import load_weights, read_state_dict, save_backbone
from lomar_det.engine import load_plain, save_atomically
from lomar_det.errors import UserError
from lomar_det.modeling import LoMaRFeaturePyramid, LoMaRViT
from lomar_pretrain import MAE, LoMaR

SMALL = dict(patch_size=16, embed_dim=24, depth=3, num_heads=2)


class Detector(nn.Module):
    """The names of a detector without its heads' cost."""

    def __init__(self, **settings):
        super().__init__()
        net = LoMaRViT(window_size=3, window_block_indexes=[0], **(SMALL | settings))
        self.backbone = LoMaRFeaturePyramid(net, out_channels=8)
        self.roi_heads = nn.Linear(4, 4)


def pretrained(**settings):
    model = LoMaR(img_size=112, **(SMALL | settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


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
    assert "class token" in str(report) and "outside the encoder" in str(report)


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
    assert "absolute positions" in report.dropped["pos_embed"]
    assert report.dropped["encoder_pred.weight"] == "pretraining only"


def test_mae_file_needs_a_model_without_irpe(tmp_path):
    mae = mae_file(tmp_path / "mae.pth")
    detector = Detector(rel_pos="none", use_abs_pos=True, pretrain_img_size=64)
    report = load_weights(detector, tmp_path / "mae.pth")
    own = detector.backbone.net
    assert torch.equal(own.pos_embed, mae.pos_embed)
    assert torch.equal(own.blocks[2].mlp.fc2.weight, mae.blocks[2].mlp.fc2.weight)
    assert not [name for name in report.loaded if "decoder" in name]


def mae_file(path):
    mae = MAE(img_size=64, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, **SMALL)
    torch.save({"model": mae.state_dict()}, path)
    return mae


def test_mae_file_fills_the_vitdet_baseline(tmp_path):
    mae = mae_file(tmp_path / "mae.pth")
    detector = Detector(rel_pos="decomposed", use_abs_pos=True, pretrain_img_size=64)
    report = load_weights(detector, tmp_path / "mae.pth")
    assert torch.equal(
        detector.backbone.net.blocks[0].attn.qkv.weight, mae.blocks[0].attn.qkv.weight
    )
    assert "backbone.net.blocks.0.attn.rel_pos_h" in report.initialised


def test_mae_file_in_an_irpe_model_names_the_remedy(tmp_path):
    mae_file(tmp_path / "mae.pth")
    with pytest.raises(UserError, match="without iRPE: set model.backbone.net.rel_pos"):
        load_weights(Detector(), tmp_path / "mae.pth")


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


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"embed_dim": 32}, r"shape .* is not the model's"),
        ({"patch_size": 8, "img_size": 56}, r"patch_embed.proj.weight: shape"),
        ({"depth": 2}, "has 2 blocks, the model 3"),
        ({"depth": 5}, "has 5 blocks, the model 3"),
    ],
)
def test_encoder_of_another_shape_fails_and_changes_nothing(tmp_path, settings, words):
    model = LoMaR(**({"img_size": 112} | SMALL | settings))
    torch.save({"model": model.state_dict()}, tmp_path / "other.pth")
    detector = Detector()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    with pytest.raises(UserError, match=words):
        load_weights(detector, tmp_path / "other.pth")
    assert all(torch.equal(before[n], v) for n, v in detector.state_dict().items())


def test_foreign_network_fails(tmp_path):
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(UserError, match="0 of .* encoder tensors arrived"):
        load_weights(Detector(), tmp_path / "linear.pth")


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_pickled_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"model": {"a": Evil()}}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(UserError, match=name):
            load_plain(tmp_path / name)
    assert "must never run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_damaged_files_are_named(tmp_path, suffix, share):
    save_backbone(tmp_path / "b.pth", pretrained().state_dict(), {})
    path = tmp_path / f"b{suffix}"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=f"b{suffix}"):
        load_plain(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.pth does not exist"):
        load_plain(tmp_path / "nowhere.pth")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "c.pth"
    save_atomically({"a": torch.ones(2)}, path)

    class Unwritable:
        def __reduce__(self):
            raise OSError("No space left on device")

    with pytest.raises(UserError, match="No space left.*earlier checkpoints are untouched"):
        save_atomically({"a": Unwritable()}, path)
    assert torch.equal(load_plain(path)["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["c.pth"]
