"""Asymmetric LoMaR: the encoder sees visible patches alone, a small decoder predicts the rest."""

import pytest
import torch
from helpers.literal import literal_asymmetric_loss

from lomar_det.benchmarks.cost import analyze
from lomar_det.checkpoint import load_weights, save_backbone
from lomar_det.modeling import LoMaRViT
from lomar_pretrain import LoMaR, WindowSample, load_pretrained, sample_windows
from lomar_pretrain.figures.reconstruction import reconstruct
from lomar_pretrain.runs.pretrain import backbone_meta

SMALL = dict(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, window_size=3)
DECODER = dict(decoder_depth=2, decoder_embed_dim=16, decoder_num_heads=2)


def make(**settings):
    """A model whose tables and norms are not as initialised, so that mistakes show."""
    torch.manual_seed(0)
    model = LoMaR(**SMALL, **DECODER | settings)
    for name, parameter in model.named_parameters():
        if "lookup_table" in name or "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("positions", [dict(), dict(rel_pos=False, abs_pos=True)])
def test_loss_and_gradients_are_those_of_the_literal_twin(positions):
    model, images = make(**positions), torch.randn(2, 3, 32, 32)
    windows = sample_windows(2, 8, 3, 2, mask_ratio=0.7)
    model(images, windows).loss.backward()
    parameters = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    loss = literal_asymmetric_loss(parameters, images, windows, 2, 2)
    loss.backward()
    torch.testing.assert_close(model(images, windows).loss, loss)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = parameters[name].grad
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5, msg=name)


def test_the_same_windows_from_noise_give_the_same_loss():
    model, images = make(), torch.randn(3, 3, 32, 32)
    out = model(images, noise=torch.rand(3, *model.noise_shape))
    again = model(images, out.windows)
    assert torch.equal(out.loss, again.loss) and torch.equal(out.pred, again.pred)
    assert out.pred.shape == (3 * model.num_windows, 9, 48)


def test_masked_pixels_are_never_seen():
    model, images = make(), torch.randn(1, 3, 32, 32)
    windows = sample_windows(1, 8, 3, 1)
    changed = images.clone()
    for patch in windows.patch_ids[windows.mask].tolist():
        y, x = divmod(patch, 8)
        changed[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = 5
    first, second = model(images, windows), model(changed, windows)
    assert torch.equal(first.pred, second.pred) and not torch.equal(first.loss, second.loss)


def test_without_a_decoder_it_is_the_papers():
    names = set(LoMaR(**SMALL).state_dict())
    assert "encoder_pred.weight" in names and not any("decoder" in name for name in names)
    asymmetric = set(make().state_dict())
    assert "encoder_pred.weight" not in asymmetric
    assert {n for n in names if n.startswith("blocks")} <= asymmetric


def test_cost_is_a_quarter_and_the_same_at_every_size():
    with torch.device("meta"):
        costs = [
            analyze(LoMaR(size, decoder_depth=depth), size, size)["total"].flops / 1e9
            for depth, size in ((1, 224), (1, 448), (0, 224))
        ]
    assert costs[0] == costs[1] == pytest.approx(8.1, abs=0.1)
    assert costs[2] / costs[0] > 4


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="decoder_num_heads"):
        make(decoder_embed_dim=15)
    with pytest.raises(ValueError, match="mask_ratio"):
        make(mask_ratio=1.0)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, :3] = mask[1, :4] = True
    windows = WindowSample(torch.zeros(2).long(), torch.arange(9).expand(2, 9), mask)
    with pytest.raises(ValueError, match="visible"):
        make()(torch.randn(1, 3, 32, 32), windows)


@pytest.mark.parametrize("how", ["meta", "config"])
def test_a_file_of_a_run_is_loaded_as_what_it_is(tmp_path, how):
    model = make()
    path = tmp_path / "model_final.pth"
    torch.save({"model": model.state_dict(), "meta": backbone_meta(model, 1)}, path)
    if how == "config":
        torch.save({"model": model.state_dict()}, path)
        lines = [f"  {key}: {value}" for key, value in (SMALL | DECODER).items()]
        target = "  _target_: lomar_pretrain.LoMaR"
        (tmp_path / "config.yaml").write_text("\n".join(["model:", target, *lines]))
    again = load_pretrained(path)
    images, windows = torch.randn(1, 3, 32, 32), sample_windows(1, 8, 3, 2)
    assert torch.equal(again(images, windows).loss, model.eval()(images, windows).loss)
    drawn = reconstruct(again, torch.randn(3, 32, 40), num_windows=3)
    assert drawn.filled.shape == (3, 32, 40) and len(drawn.boxes) == 3


def test_the_detector_gets_every_tensor_of_the_encoder(tmp_path):
    model = make()
    save_backbone(tmp_path / "b.pth", model.state_dict(), backbone_meta(model, 1))
    settings = {key: SMALL[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    net = LoMaRViT(img_size=32, window_size=3, window_block_indexes=[0], **settings)
    report = load_weights(net, tmp_path / "b.pth")
    assert not report.initialised
    for name, value in net.state_dict().items():
        assert torch.equal(value, model.state_dict()[name][..., : value.shape[-1]]), name
