"""The loss of a constant patch, which a loss must be held against."""

from types import SimpleNamespace

import pytest
import torch

from lomar_det.engine.writers import read_metrics
from lomar_pretrain import LoMaR, pretrain
from lomar_pretrain.models.decoder import normalize_patches
from lomar_pretrain.runs.loss_constant import LossConstant

MODEL = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 64, "window_size": 3}


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_it_is_the_distance_from_the_mean_patch(norm_pix_loss):
    model = LoMaR(32, 8, 16, 1, 2, window_size=3, norm_pix_loss=norm_pix_loss)
    constant, patches = LossConstant(model, 1), []
    for seed in range(3):
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) + 2
        constant.watch(images)
        value = constant.measure()
        for image in images:
            for y in range(0, 32, 8):
                for x in range(0, 32, 8):
                    patches.append(image[:, y : y + 8, x : x + 8].permute(1, 2, 0).flatten())
    targets = torch.stack(patches)
    targets = normalize_patches(targets) if norm_pix_loss else targets
    assert value == pytest.approx((targets - targets.mean(0)).square().mean().item(), rel=1e-4)


def test_dark_images_leave_little_to_a_model():
    """Normalised black has other values in each channel, which a constant patch predicts."""
    model = LoMaR(32, 8, 16, 1, 2, window_size=3)
    constant = LossConstant(model, 1)
    offsets = torch.tensor([-2.1, -2.0, -1.8])[:, None, None]
    constant.watch(offsets + 0.01 * torch.randn(8, 3, 32, 32))
    assert constant.measure() < 0.02


@pytest.mark.run
def test_a_run_writes_it_beside_the_loss_and_says_what_it_means(drawn_set, tmp_path):
    train = {"epochs": 2, "warmup_epochs": 1, "total_batch_size": 2, "log_period": 2}
    train |= {"device": "cpu", "picture_epochs": 0}
    opts = {"data.num_workers": 0}
    pretrain(drawn_set[1], tmp_path, "lomar_vit_tiny", model=MODEL, train=train, **opts)
    lines = read_metrics(tmp_path / "metrics.json")
    assert all(0 < line["loss_constant"] < 1.5 for line in lines)
    log = (tmp_path / "log.txt").read_text()
    assert f"constant patch has {lines[-1]['loss_constant']:.3g}" in log


def test_only_lines_of_the_log_are_measured():
    constant = LossConstant(LoMaR(32, 8, 16, 1, 2, window_size=3), period=5)
    constant.watch(torch.randn(2, 3, 32, 32))
    written = {}
    storage = SimpleNamespace(put_scalar=lambda name, value, **_: written.update({name: value}))
    for iteration in range(4):
        constant.trainer = SimpleNamespace(iter=iteration, storage=storage)
        constant.after_step()
    assert not written
    constant.trainer.iter = 4
    constant.after_step()
    assert written.keys() == {"loss_constant"}
