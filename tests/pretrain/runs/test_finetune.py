"""Classification from command to accuracy: tiny runs on drawn images."""

import json
import re

import pytest
import torch
from helpers.common import TINY_CLASSIFIER, draw_colours, read_metrics, tool_args

from lomar_det.checkpoint import save_backbone
from lomar_det.errors import UserError
from lomar_pretrain import LoMaR
from lomar_pretrain.runs.finetune import main

pytestmark = pytest.mark.run

TINY_PROBE = [setting.replace("model.", "model.encoder.") for setting in TINY_CLASSIFIER]


@pytest.fixture
def colours(tmp_path):
    """Three classes that a model learns in seconds: noise of one colour each."""
    return draw_colours(tmp_path / "colours", ("blue", "green", "red"), 16)


def run(config, colours, output, *opts, **flags):
    settings = [f"data.path={colours}", f"train.output_dir={output}", *opts]
    return main(tool_args(f"imagenet/{config}.py", *settings, **flags))


def losses(output):
    lines = [line for line in read_metrics(output) if "total_loss" in line]
    return [(line["iteration"], line["total_loss"]) for line in lines]


def test_finetuning_learns_resumes_and_evaluates(colours, tmp_path):
    backbone = tmp_path / "backbone_final.pth"
    model = LoMaR(img_size=64, embed_dim=32, depth=2, num_heads=2, window_size=3)
    save_backbone(backbone, model.state_dict(), {})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    opts = [
        *TINY_CLASSIFIER,
        f"train.init_checkpoint={backbone}",
        "train.epochs=4",
        "train.warmup_epochs=1",
        "train.base_lr=0.1",
        "train.layer_decay=null",
        "train.ema_decay=0.9",
        "train.mixup=0.2",
        "train.checkpoint_epochs=1",
        "train.max_to_keep=9",
    ]
    result = run("finetune_lomar_vit_tiny", colours, whole, *opts)["classification"]
    assert result["top1"] > 60 and result["images"] == 9  # chance is 33
    assert json.loads((whole / "metrics_test.json").read_text())["classification"] == result

    parts.mkdir()
    checkpoint = sorted(whole.glob("model_0*.pth"))[1]
    (parts / checkpoint.name).write_bytes(checkpoint.read_bytes())
    (parts / "last_checkpoint").write_text(checkpoint.name)
    resumed = run("finetune_lomar_vit_tiny", colours, parts, *opts, resume=True)
    assert resumed["classification"] == result
    start = losses(parts)[0][0]
    assert start > 0 and losses(parts) == [line for line in losses(whole) if line[0] >= start]

    best = whole / "model_best.pth"
    again = run(
        "finetune_lomar_vit_tiny",
        colours,
        tmp_path / "evaluated",
        *TINY_CLASSIFIER,
        f"train.init_checkpoint={best}",
        eval_only=True,
    )
    meta = torch.load(best, weights_only=True)["meta"]
    assert again["classification"]["top1"] == pytest.approx(meta["value"])
    assert meta["classes"] == ["blue", "green", "red"]

    larger = ["model.img_size=48", "train.epochs=1", "train.warmup_epochs=0"]
    start = [f"train.init_checkpoint={whole / 'model_final_ema.pth'}", "train.base_lr=1e-9"]
    opts = [*TINY_CLASSIFIER, *larger, *start]
    kept = run("finetune_lomar_vit_tiny", colours, tmp_path / "larger", *opts)
    assert kept["classification"]["top1"] > 60  # the head came along

    (colours / "red").rename(colours / "black")  # now the first by name
    with pytest.raises(UserError, match="model_best.pth.*'red'.*'black'"):
        opts = [*TINY_CLASSIFIER, f"train.init_checkpoint={best}"]
        run("finetune_lomar_vit_tiny", colours, tmp_path / "wrong", *opts, eval_only=True)


def test_linear_probe_leaves_the_encoder_as_it_was(colours, tmp_path):
    opts = [*TINY_PROBE, "train.epochs=2", "train.warmup_epochs=0", "train.seed=3"]
    run("linear_lomar_vit_tiny", colours, tmp_path / "linear", *opts)
    final = torch.load(tmp_path / "linear" / "model_final.pth", weights_only=True)["model"]
    run("linear_lomar_vit_tiny", colours, tmp_path / "short", *opts, "train.epochs=1")
    short = torch.load(tmp_path / "short" / "model_final.pth", weights_only=True)["model"]
    encoder = [name for name in final if name.startswith("encoder.")]
    assert encoder and all(torch.equal(final[name], short[name]) for name in encoder)
    assert not torch.equal(final["head.weight"], short["head.weight"])


@pytest.fixture
def split(colours, tmp_path):
    """``colours`` with 14 images a class in train/ and 3 in val/; two of all are broken."""
    for i in range(2, 16):
        for folder in ("train", "val") if i < 5 else ("train",):
            for colour in ("blue", "green", "red"):
                path = tmp_path / "split" / folder / colour / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes((colours / colour / f"{i}.png").read_bytes())
    bad = tmp_path / "split" / "train" / "red" / "7.png"
    bad.write_bytes(bad.read_bytes()[:80])
    (tmp_path / "split" / "val" / "green" / "2.png").write_bytes(b"no image")
    return tmp_path / "split"


def test_unreadable_images_are_replaced_or_left_out_and_listed(split, tmp_path):
    """As in pretraining; none counts as validated that was not."""
    opts = [
        *TINY_CLASSIFIER,
        "train.epochs=2",
        "train.warmup_epochs=0",
        "data.max_bad_fraction=0.2",
    ]
    result = run("finetune_lomar_vit_tiny", split, tmp_path / "out", *opts)
    assert result["classification"]["images"] == 8
    listed = (tmp_path / "out" / "bad_images.txt").read_text().splitlines()
    paths = {line.split("\t")[0] for line in listed}
    assert paths == {f"{split}/train/red/7.png", f"{split}/val/green/2.png"} and len(listed) == 2
    warning = re.compile("1 of 9 .*2.png")
    log = (tmp_path / "out" / "log.txt").read_text()
    assert len(warning.findall(log)) == 1  # not in each epoch
    weights = f"train.init_checkpoint={tmp_path / 'out' / 'model_final.pth'}"
    run("finetune_lomar_vit_tiny", split, tmp_path / "out", *opts, weights, eval_only=True)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert len(warning.findall(log)) == 2  # a run of its own, although all are listed


def test_too_many_unreadable_images_end_training_and_lose_nothing(split, tmp_path):
    opts = [*TINY_CLASSIFIER, "train.epochs=2", "train.warmup_epochs=0"]
    with pytest.raises(UserError, match="max_bad_fraction=0[^.].*resume"):
        run("finetune_lomar_vit_tiny", split, tmp_path / "strict", *opts, "data.max_bad_fraction=0")
    assert list((tmp_path / "strict").glob("model_0*.pth"))
    # of the images to validate on, after the first of two epochs
    out = tmp_path / "out"
    with pytest.raises(UserError, match="1 of 9 .*max_bad_fraction=0.05.*2.png'.*resume"):
        run("finetune_lomar_vit_tiny", split, out, *opts)
    assert [path.name for path in out.glob("model_0*.pth")] == ["model_0000004.pth"]
    opts.append("data.max_bad_fraction=0.2")
    run("finetune_lomar_vit_tiny", split, out, *opts, resume=True)
    assert [iteration for iteration, _ in losses(out)] == list(range(10))
    assert len((out / "bad_images.txt").read_text().splitlines()) == 2  # each once


@pytest.mark.parametrize(
    "opts, message",
    [
        (["train.warmup_epochs=30"], "train.warmup_epochs=30"),
        (["train.optimizer=null"], "train.optimizer=None"),
        (["train.optimizer=adamz"], "train.optimizer=adamz"),
        (["data.augmentation.hflip=2"], "hflip=2"),
        (["train.device=mps"], "train.device=mps.*cuda"),
        (["data.val_fraction=1.5"], "val_fraction"),
        (["model.num_head=2"], "model.num_head'"),
        (["data.path=nowhere"], "nowhere"),
        (["train.init_checkpoint=nowhere.pth"], "nowhere.pth"),
    ],
)
def test_what_is_wrong_is_said_before_training(colours, tmp_path, opts, message):
    with pytest.raises(UserError, match=message):
        run("finetune_lomar_vit_tiny", colours, tmp_path / "out", *TINY_CLASSIFIER, *opts)
    assert not list((tmp_path / "out").glob("*.pth"))


def test_evaluation_wants_the_whole_classifier(colours, tmp_path):
    backbone = tmp_path / "backbone_final.pth"
    model = LoMaR(img_size=64, embed_dim=32, depth=2, num_heads=2, window_size=3)
    save_backbone(backbone, model.state_dict(), {})
    opts = [*TINY_CLASSIFIER, f"train.init_checkpoint={backbone}"]
    with pytest.raises(UserError, match="backbone_final.pth.* 3 "):
        run("finetune_lomar_vit_tiny", colours, tmp_path / "out", *opts, eval_only=True)
