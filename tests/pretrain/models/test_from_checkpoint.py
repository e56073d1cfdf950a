"""A pretraining model from each kind of file that there is, and the tool that draws with it."""

import argparse
import runpy
import sys

import numpy as np
import pytest
import torch
from helpers.common import ROOT
from helpers.small_models import randomise
from PIL import Image

from lomar_det.errors import UserError
from lomar_pretrain import MAE, LoMaR, load_pretrained
from lomar_pretrain.figures.sheet import visualize

SMALL = dict(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2)
DECODER = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
# As wide as ViT-B, so that the number of heads is known, but short and thin.
BASE = dict(img_size=32, patch_size=16, embed_dim=768, depth=1, num_heads=12, mlp_ratio=0.5)
MODELS = {
    "lomar": lambda: LoMaR(**SMALL, window_size=3, num_windows=2, mask_ratio=0.6),
    "lomar_abs": lambda: LoMaR(**SMALL, window_size=5, rel_pos=False, abs_pos=True),
    "mae": lambda: MAE(**SMALL, **DECODER, norm_pix_loss=False),
    "mae_rpe": lambda: MAE(**SMALL, **DECODER, rel_pos=True, mask_ratio=0.5),
}


def save(path, model, **extra):
    torch.save({"model": model.state_dict(), **extra}, path)
    return path


def assert_same(loaded, model):
    assert type(loaded) is type(model) and not loaded.training
    assert loaded.architecture == model.architecture
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert loaded.state_dict().keys() == expected.keys()


@pytest.mark.parametrize("name", MODELS)
def test_meta_says_everything(tmp_path, name):
    model = randomise(MODELS[name]())
    path = save(tmp_path / "model_final.pth", model, meta=model.architecture | {"epochs": 3})
    assert_same(load_pretrained(path), model)


CONFIG = """
data:
  path: images
model:
  _target_: lomar_pretrain.models.lomar.LoMaR
  img_size: 32
  patch_size: 4
  embed_dim: 24
  depth: 2
  num_heads: ${model.depth}
  window_size: 3
  num_windows: 2
  mask_ratio: 0.6
"""


def test_the_config_beside_the_file_or_a_given_one(tmp_path, lomar_log):
    model = randomise(MODELS["lomar"]())
    path = save(tmp_path / "model_final.pth", model)
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert_same(load_pretrained(path), model)
    given = (tmp_path / "config.yaml").rename(tmp_path / "given.yaml")
    assert_same(load_pretrained(path, given), model)
    given.write_text(CONFIG.replace("lomar.LoMaR", "mae.MAE"))
    with pytest.raises(UserError, match="given.yaml.*MAE.*LoMaR"):
        load_pretrained(path, given)
    given.write_text(CONFIG.replace("embed_dim: 24", "embed_dim: 32"))
    with pytest.raises(UserError, match="model_final.pth.*--config-file"):
        load_pretrained(path, given)
    (tmp_path / "config.yaml").write_text("model: [cut off")
    assert load_pretrained(path).window_size == 7  # the papers'
    assert "config.yaml" in lomar_log.text
    given.write_text("model: !!python/object/apply:os.system ['touch danger']")
    with pytest.raises(UserError, match="given.yaml"):
        load_pretrained(path, given)
    with pytest.raises(UserError, match="gone.yaml"):
        load_pretrained(path, tmp_path / "gone.yaml")


def test_a_python_config(tmp_path):
    torch.manual_seed(0)
    recipe = ROOT / "configs" / "pretrain" / "lomar_vit_tiny.py"
    model = LoMaR(embed_dim=192, depth=6, num_heads=3)
    path = save(tmp_path / "model_final.pth", model)
    assert_same(load_pretrained(path, recipe), model)


def test_an_official_lomar_file(tmp_path):
    """Released files carry positions that the model does not use, and pickle a Namespace."""
    model = randomise(LoMaR(**BASE | {"img_size": 112}))
    state = model.state_dict() | {"pos_embed": torch.zeros(1, 50, 768)}
    (tmp_path / "config.yaml").write_text("model: {_target_: detectron2.GeneralizedRCNN}")
    arguments = argparse.Namespace(norm_pix_loss=True, mask_ratio=0.8, model="mae_vit_base_patch16")
    torch.save({"model": state, "epoch": 1, "args": arguments}, tmp_path / "official.pth")
    assert_same(load_pretrained(tmp_path / "official.pth"), model)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_an_official_mae_file(tmp_path, norm_pix_loss):
    model = randomise(MAE(**BASE, decoder_depth=1, norm_pix_loss=norm_pix_loss))
    arguments = argparse.Namespace(norm_pix_loss=norm_pix_loss, mask_ratio=0.75)
    assert_same(load_pretrained(save(tmp_path / "mae.pth", model, args=arguments)), model)
    # without the arguments, nothing says how the targets were made
    bare = save(tmp_path / "bare.pth", model)
    assert load_pretrained(bare).norm_pix_loss
    assert not load_pretrained(bare, norm_pix_loss=False).norm_pix_loss


def test_files_that_hold_no_such_model(tmp_path):
    model = MODELS["mae"]()
    path = save(tmp_path / "unknown.pth", model)
    with pytest.raises(UserError, match="unknown.pth.*heads.*--config-file"):
        load_pretrained(path)
    encoder = {name: value for name, value in model.state_dict().items() if "decoder" not in name}
    torch.save({"model": encoder, "meta": model.architecture}, tmp_path / "backbone_final.pth")
    with pytest.raises(UserError, match="backbone_final.pth.*model_final.pth"):
        load_pretrained(tmp_path / "backbone_final.pth")
    state = {n: v for n, v in model.state_dict().items() if not n.startswith("blocks.1.")}
    torch.save({"model": state, "meta": model.architecture}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="part.pth.*12.*blocks.1.norm1"):
        load_pretrained(tmp_path / "part.pth")
    torch.save({"model": model.state_dict(), "meta": {"method": "mae", "depth": "x"}}, path)
    with pytest.raises(UserError, match="unknown.pth"):
        load_pretrained(path)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate([(60, 40), (40, 60), (50, 50)]):
        pixels = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def arguments(checkpoint, images, folder, **changes):
    return argparse.Namespace(
        **{
            "checkpoint": str(checkpoint),
            "input": [str(images)],
            "output": str(folder),
            "num_images": 2,
            "num_windows": None,
            "mask_ratio": None,
            "seed": 0,
            "config_file": None,
            "raw_pixels": False,
            "device": "cpu",
        }
        | changes
    )


@pytest.mark.parametrize("name", ["lomar_abs", "mae_rpe"])
def test_the_tool_draws(tmp_path, images, name, monkeypatch, capsys):
    model = randomise(MODELS[name]())
    path = save(tmp_path / "model_0000009.pth", model, meta=model.architecture)
    (images / "0.png").write_bytes(b"broken")
    output = tmp_path / "new" / "sheet.png"
    command = ["visualize", "--checkpoint", path, "--input", images, "--output", output]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    runpy.run_path(str(ROOT / "tools" / "visualize_reconstruction.py"), run_name="__main__")
    with Image.open(output) as sheet:
        assert sheet.width > 800 and sheet.height > 400  # two rows
    assert str(output) in capsys.readouterr().out
    assert visualize(arguments(path, images, tmp_path)) == tmp_path / "reconstruction.png"


def test_what_the_tool_refuses(tmp_path, images):
    model = MODELS["lomar"]()
    path = save(tmp_path / "model_final.pth", model, meta=model.architecture)
    for changes, words in (
        ({"num_windows": 0}, "num_windows=0"),
        ({"mask_ratio": 1.5}, "--mask-ratio 1.5"),
        ({"mask_ratio": 0.01}, "mask_ratio.* 0.01"),
        ({"num_images": 0}, "--num-images 0"),
        ({"output": "sheet.docx"}, "sheet.docx"),
        ({"output": str(path / "sheet.png")}, "sheet.png"),
        ({"input": ["gone/*.png"]}, "gone/"),
    ):
        with pytest.raises(UserError, match=words):
            visualize(arguments(path, images, tmp_path, **changes))
    for image in images.iterdir():
        image.write_bytes(b"broken")
    with pytest.raises(UserError, match="--input"):
        visualize(arguments(path, images, tmp_path))
