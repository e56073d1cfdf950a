"""The configs of configs/pretrain: every one builds, with the numbers that its name promises."""

import math
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from helpers.common import ROOT, tool_args

from lomar_det.config.lazy import load_config
from lomar_det.engine import warmup_cosine_schedule
from lomar_det.errors import UserError
from lomar_pretrain import MAE, LoMaR
from lomar_pretrain.runs import pretrain as pretraining

FOLDER = ROOT / "configs" / "pretrain"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "custom")
# (patch size, embed_dim, depth, heads)
SIZES = {
    "vit_s": (16, 384, 12, 6),
    "vit_b": (16, 768, 12, 12),
    "vit_l": (16, 1024, 24, 16),
    "vit_h14": (14, 1280, 32, 16),
    "vit_tiny": (16, 192, 6, 3),
}


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_what_its_name_says(name):
    cfg = load_config(FOLDER / f"{name}.py", [])
    with torch.device("meta"):
        model = instantiate(cfg.model)
    out = model(torch.empty(2, 3, *model.img_size, device="meta"))
    assert cfg.train.output_dir == f"output/pretrain/{name}"
    (size,) = (size for key, size in SIZES.items() if f"{key}_" in name + "_")
    patch, dim, depth, heads = size
    assert (model.patch_size, model.cls_token.shape[-1], len(model.blocks)) == (patch, dim, depth)
    assert {block.attn.num_heads for block in model.blocks} == {heads}
    side = next((s for s in (384, 448) if f"_{s}_" in name), 224)
    assert model.img_size == (side, side) and model.grid == (side // patch, side // patch)

    irpe = "abs_pos" not in name and ("lomar" in name or "rpe" in name)
    state = model.state_dict()
    assert ("blocks.0.attn.rpe_k.lookup_table_weight" in state) == irpe
    assert ("pos_embed" in state) == (not irpe)
    if irpe:
        assert state["blocks.0.attn.rpe_k.lookup_table_weight"].shape == (1, dim // heads, 50)
    if name.startswith("lomar"):
        is_asymmetric = name.startswith("lomar_asym")
        windows = 4 if side == 224 else 8 if is_asymmetric else 9
        assert model.is_asymmetric == is_asymmetric
        assert type(model) is LoMaR and out.pred.shape == (2 * windows, 49, patch * patch * 3)
        assert int(49 * model.mask_ratio) == 39
    else:
        visible = int(model.grid[0] ** 2 * (1 - model.mask_ratio))
        assert type(model) is MAE and out.pred.shape == (2, 196, 768) and visible == 49
        decoder = len(model.decoder_blocks), *model.decoder_embed.weight.shape
        assert decoder == ((2, 128, 192) if "tiny" in name else (8, 512, 768))


@pytest.mark.parametrize("name", [name for name in NAMES if "tiny" not in name])
def test_recipe_trains_as_the_paper_says(name):
    train = load_config(FOLDER / f"{name}.py", []).train
    epochs = int(name.rsplit("_", 1)[1].removesuffix("ep"))
    warmup = {1600: 40, 800: 40, 400: 20}[epochs]
    assert (train.epochs, train.warmup_epochs, train.total_batch_size) == (epochs, warmup, 4096)
    assert train.base_lr * train.total_batch_size / 256 == pytest.approx(2.4e-3)
    assert list(train.betas) == [0.9, 0.95] and train.weight_decay == 0.05
    schedule = warmup_cosine_schedule(train.warmup_epochs / train.epochs)
    middle = (warmup + epochs) / 2
    for epoch, expected in ((warmup / 2, 0.5), (warmup, 1), (middle, 0.5)):
        assert schedule(epoch / epochs) == pytest.approx(expected, abs=1e-9)
    last = 1 - 1 / (epochs * 312)  # ImageNet-1k: 312 iterations an epoch
    assert schedule(last) == pytest.approx(
        (1 + math.cos(math.pi * (last * epochs - warmup) / (epochs - warmup))) / 2, abs=1e-9
    )
    assert schedule(last) < 1e-9


def test_the_recipe_for_a_folder_of_ones_own_fits_the_custom_detector():
    cfg = load_config(FOLDER / "custom.py", [])
    with torch.device("meta"):
        model = instantiate(cfg.model)
    detector = load_config(ROOT / "configs" / "custom" / "mask_rcnn_lomar_vit_b.py", [])
    net = detector.model.backbone.net
    sizes = "embed_dim", "depth", "num_heads", "patch_size"
    assert model.is_asymmetric and all(model.architecture[key] == net[key] for key in sizes)
    assert 6e-4 <= cfg.train.base_lr * cfg.train.total_batch_size / 256 <= 1.5e-3
    assert cfg.train.warmup_epochs / cfg.train.epochs == 0.05


def test_the_table_lists_every_recipe():
    readme = (FOLDER / "README.md").read_text()
    assert [name for name in NAMES if f"| `{name}` |" not in readme] == []


LOMAR, MAE_TINY = "lomar_vit_tiny", "mae_vit_tiny"
# One for each rule that a model, a section or the run has of its own.
REFUSED = [
    (LOMAR, "model.num_heads=5", "embed_dim.*num_heads.* 5"),
    (LOMAR, "model.num_heads=0", "num_heads=0"),
    (LOMAR, "model.depth=two", "depth=two"),
    (LOMAR, "model.embed_dim=190 model.num_heads=1 model.abs_pos=True", "embed_dim % 4"),
    (LOMAR, "model.img_size=[224,100]", "224x100.*224x112"),
    (LOMAR, "model.img_size=[1,2,3]", "img_size="),
    (LOMAR, "model.window_size=15", "window_size.* 15.*14x14"),
    (LOMAR, "model.window_size=3.5", "window_size=3.5"),
    (LOMAR, "model.num_windows=0", "num_windows=0"),
    (LOMAR, "model.mask_ratio=1.2", "mask_ratio=1.2"),
    (LOMAR, "model.mask_ratio=0.01", "mask_ratio.* 0.01"),
    (LOMAR, "model.rel_pos=False", "rel_pos.*abs_pos"),
    (LOMAR, "model.rel_pos=yes_please", "rel_pos=yes_please"),
    (LOMAR, "model.attention_backend=fast", "'fast'.*matmul"),
    (MAE_TINY, "model.mask_ratio=0.999", "mask_ratio.* 0.999"),
    (MAE_TINY, "model.mask_ratio=1", "mask_ratio=1"),
    (MAE_TINY, "model.decoder_num_heads=3", "decoder_embed_dim.*decoder_num_heads.* 3"),
    (LOMAR, "train.warmup_epochs=100", "train.warmup_epochs=100.*train.epochs=100"),
    (LOMAR, "train.base_lr=0", "train.base_lr=0"),
    (LOMAR, "train.accumulation_steps=0", "train.accumulation_steps=0"),
    (LOMAR, "train.accumulation_steps=3", "64.* 3"),
    (LOMAR, "train.betas=[0.9,1]", "train.betas="),
    (LOMAR, "train.precision=half", "train.precision=half.*bf16"),
    (LOMAR, "train.precision=fp16", "train.precision=fp16"),
    (LOMAR, "train.picture_epochs=-1", "train.picture_epochs=-1"),
    (LOMAR, "train.probe.k=0", "train.probe.k=0"),
    (LOMAR, "data.max_bad_fraction=2", "data.max_bad_fraction=2"),
    (LOMAR, "data.crop_scale=[1,0.2]", "data.crop_scale="),
    (LOMAR, "data.flip=maybe", "data.flip=maybe"),
    (LOMAR, "model.num_window=3", "model.num_window'.*num_windows"),
    (MAE_TINY, "model.window_size=7", "model.window_size'.*mask_ratio"),
]


@pytest.mark.parametrize("config, settings, words", REFUSED)
def test_impossible_settings_are_refused_before_images_are_looked_for(
    tmp_path, config, settings, words
):
    opts = ["data.path=not/there", f"train.output_dir={tmp_path}", "train.device=cpu"]
    with pytest.raises(UserError, match=words):
        pretraining.main(tool_args(f"pretrain/{config}.py", *opts, *settings.split()))


@pytest.mark.parametrize(
    "settings",
    ["model.img_size=[96,224] model.window_size=5", "model.patch_size=8 model.img_size=[64,72]"],
)
def test_sizes_are_plain_settings(settings):
    cfg = load_config(Path(FOLDER, "lomar_vit_tiny.py"), settings.split())
    model = instantiate(cfg.model)
    out = model(torch.randn(1, 3, *cfg.model.img_size))
    assert out.loss.isfinite() and out.pred.shape[:2] == (4, cfg.model.window_size**2)
