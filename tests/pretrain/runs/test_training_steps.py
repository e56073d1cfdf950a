"""Training as the command does it, against literal formulas: steps, schedule, splits of a batch."""

import math
import re

import pytest
import torch
from helpers.common import TINY_PRETRAIN, read_metrics, run_two_processes, tool_args
from helpers.literal import literal_lomar_loss, literal_mae_loss

from lomar_det.checkpoint.serialization import load_plain
from lomar_det.config.lazy import load_config
from lomar_det.data.stream import SeededDataset, seed_everything, stream_loader
from lomar_det.modeling.build import build_model
from lomar_pretrain.data.sources import find_images
from lomar_pretrain.data.transforms import PretrainTransform, WithNoise, normalize
from lomar_pretrain.models.window_sampling import windows_from_noise
from lomar_pretrain.runs import pretrain as pretraining
from lomar_pretrain.runs import progress

pytestmark = pytest.mark.run

LOMAR, MAE = "pretrain/lomar_vit_tiny.py", "pretrain/mae_vit_tiny.py"
TINY = {
    LOMAR: TINY_PRETRAIN,
    MAE: [s for s in TINY_PRETRAIN if "window" not in s] + ["model.decoder_embed_dim=16"],
}
FAMILIES = [(config, *positions) for config in TINY for positions in ((True, False), (False, True))]


@pytest.fixture(autouse=True)
def _no_images(monkeypatch):
    """They take longer than the training."""
    monkeypatch.setattr(pretraining, "plot_training", lambda *_: None)


def pretrain_args(images, output, config, *opts):
    settings = [*TINY[config], f"data.path={images}", f"train.output_dir={output}", *opts]
    return tool_args(config, *settings)


def read(output, key):
    return [line[key] for line in read_metrics(output)]


def final_weights(output):
    return load_plain(output / "model_final.pth")["model"]


def literal_loss(p, images, noise, cfg):
    side = cfg.model.img_size // cfg.model.patch_size
    if "num_windows" in cfg.model:
        settings = (side, side), cfg.model.window_size, cfg.model.mask_ratio
        windows = windows_from_noise(noise, *settings)
        return literal_lomar_loss(p, images, windows, cfg.model.num_heads)
    heads = cfg.model.num_heads, cfg.model.decoder_num_heads
    return literal_mae_loss(p, images, noise, (side, side), cfg.model.mask_ratio, *heads)


@pytest.mark.parametrize("config, rel_pos, abs_pos", FAMILIES)
def test_two_steps_are_the_literal_ones(drawn_set, tmp_path, config, rel_pos, abs_pos):
    """Loss, gradients and AdamW (decay on matrices alone), written out in float64."""
    opts = [f"model.rel_pos={rel_pos}", f"model.abs_pos={abs_pos}"]
    opts += ["train.epochs=2", "train.warmup_epochs=0", "train.base_lr=0.32"]
    args = pretrain_args(drawn_set[1], tmp_path / "out", config, *opts)
    pretraining.main(args)

    cfg = load_config(args.config_file, args.opts)
    seed_everything(cfg.train.seed)
    model = build_model(cfg)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    p = {name: value.detach().double() for name, value in model.state_dict().items()}
    transform = WithNoise(PretrainTransform(64), model.noise_shape)
    dataset = SeededDataset(find_images(drawn_set[1]), transform, cfg.train.seed)
    batches = iter(stream_loader(dataset, 4, cfg.train.seed))
    losses, moments = [], {name: (0, 0) for name in trained}
    for step in (1, 2):
        images, noise = next(batches)
        leaves = {name: p[name].requires_grad_() for name in trained}
        loss = literal_loss(p | leaves, normalize(images).double(), noise, cfg)
        losses.append(loss.item())
        lr = 0.32 * 4 / 256 * (1 + math.cos(math.pi * (step - 1) / 2)) / 2
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for name, g in zip(trained, gradients, strict=True):
            m, v = moments[name]
            m, v = moments[name] = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            value = p[name].detach()
            value = value * (1 - lr * 0.05) if value.dim() > 1 else value
            m, v = m / (1 - 0.9**step), v / (1 - 0.95**step)
            p[name] = value - lr * m / (v.sqrt() + 1e-8)
    assert read(tmp_path / "out", "total_loss") == pytest.approx(losses, rel=1e-4)
    weights = final_weights(tmp_path / "out")
    assert weights.keys() == p.keys()
    for name, value in p.items():
        difference = (weights[name].double() - value).abs()
        if name in trained:
            # Where a gradient is zero but for rounding, AdamW's first steps follow the rounding.
            v = moments[name][1]
            difference = difference[(v > 1e-13) | (v == 0)]
            assert len(difference) > 0.6 * value.numel(), name  # keys' biases have no effect at all
        assert difference.max() < 5e-5, name


def test_the_learning_rate_of_a_run_is_the_closed_formula(drawn_set, tmp_path):
    args = pretrain_args(drawn_set[1], tmp_path, LOMAR, "train.epochs=12", "train.warmup_epochs=4")
    pretraining.main(args)  # 6 images, batch 4: one iteration an epoch
    peak = 1e-3 * 4 / 256
    expected = [peak * i / 4 for i in range(4)]
    expected += [peak * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert read(tmp_path, "lr") == pytest.approx(expected, abs=1e-12)


def assert_same_training(first, second):
    losses = read(first, "total_loss")
    assert len(losses) == 5 and losses == pytest.approx(read(second, "total_loss"), abs=1e-5)
    a, b = final_weights(first), final_weights(second)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("config", TINY)
def test_accumulation_trains_as_the_whole_batch_does(drawn_set, tmp_path, config):
    splits = {
        "whole": [],
        "half": ["train.accumulation_steps=2"],
        "max": ["train.max_batch_per_gpu=1"],
    }
    for name, opts in splits.items():
        pretraining.main(
            pretrain_args(drawn_set[1], tmp_path / name, config, "train.epochs=5", *opts)
        )
    for name, steps in (("half", 2), ("max", 4)):
        arithmetic = rf"{4 // steps} \D+ 1 \D+ {steps} \D+ 4\D"
        assert re.search(arithmetic, (tmp_path / name / "log.txt").read_text())
        assert_same_training(tmp_path / "whole", tmp_path / name)


def test_two_processes_train_as_one_does(drawn_set, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "NUM_EXAMPLES", 1)  # sooner drawn
    one = pretrain_args(drawn_set[1], tmp_path / "one", LOMAR, "train.epochs=5")
    # one of the two draws now and then, and the other waits for it
    opts = ["train.epochs=5", "train.picture_epochs=4"]
    two = pretrain_args(drawn_set[1], tmp_path / "two", LOMAR, *opts)
    pretraining.main(one)
    run_two_processes(pretraining.main, two)
    assert re.search(r"2 \D+ 2 \D+ 1 \D+ 4\D", (tmp_path / "two" / "log.txt").read_text())
    assert_same_training(tmp_path / "one", tmp_path / "two")
    sheets = sorted(path.name for path in (tmp_path / "two" / "pictures").iterdir())
    assert sheets == ["reconstruction_0004.png", "reconstruction_0005.png"]
