"""LoMaR against a slow literal reference, and the released layout of its state dict."""

import pytest
import torch
from helpers.literal import literal_lomar_loss

from lomar_pretrain import LoMaR, WindowSample, sample_windows

SMALL = dict(img_size=40, patch_size=4, embed_dim=24, depth=2, num_heads=2, window_size=3)


def make_model(**settings):
    model = LoMaR(**(SMALL | settings)).double()
    for block in model.blocks:
        if hasattr(block.attn, "rpe_k"):
            torch.nn.init.normal_(block.attn.rpe_k.lookup_table_weight, std=0.5)
    return model


def test_loss_and_gradients_are_the_literal_ones():
    model = make_model()
    images = torch.randn(2, 3, 40, 24, dtype=torch.float64)
    windows = sample_windows(2, (10, 6), 3, 2, 0.8)
    parameters = dict(model.named_parameters())
    loss, expected = (
        model(images, windows).loss,
        literal_lomar_loss(parameters, images, windows, heads=2),
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(loss, parameters.values())
    reference = torch.autograd.grad(expected, parameters.values())
    for name, a, b in zip(parameters, ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7, msg=name)


def test_output_has_the_promised_shapes_and_windows():
    model = make_model(num_windows=3).float()
    out = model(torch.randn(2, 3, 40, 40))
    assert out.pred.shape == (6, 9, 48) and out.loss.dim() == 0
    assert isinstance(out.windows, WindowSample) and out.windows.mask.sum() == 6 * 7


def test_unmasked_pixels_do_not_enter_the_loss():
    model, windows = make_model(), sample_windows(1, 10, 3, 1, 0.8)
    images = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    pred = model(images, windows).pred
    patches = model.window_patches(images, windows)
    loss = model.reconstruction_loss(pred, patches, windows.mask)
    patches = torch.where(windows.mask[..., None], patches, torch.randn_like(patches))
    assert model.reconstruction_loss(pred, patches, windows.mask) == loss


def official_state_dict(model, positions: bool = True):
    """The released file's names and shapes for the model's size."""
    dim, p, depth = model.cls_token.shape[-1], model.patch_size, len(model.blocks)
    head_dim = dim // model.blocks[0].attn.num_heads
    shapes = {
        "cls_token": (1, 1, dim),
        "mask_token": (1, 1, dim),
        "patch_embed.proj.weight": (dim, 3, p, p),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "encoder_pred.weight": (p * p * 3, dim),
        "encoder_pred.bias": (p * p * 3,),
    }
    if positions:
        shapes["pos_embed"] = (1, 1 + model.grid[0] * model.grid[1], dim)
    for n in range(depth):
        b = f"blocks.{n}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{b}{norm}.weight": (dim,), f"{b}{norm}.bias": (dim,)}
        linears = {
            "attn.qkv": (3 * dim, dim),
            "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim),
            "mlp.fc2": (dim, 4 * dim),
        }
        for name, shape in linears.items():
            shapes |= {f"{b}{name}.weight": shape, f"{b}{name}.bias": shape[:1]}
        shapes[b + "attn.rpe_k.lookup_table_weight"] = (1, head_dim, 50)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("positions", [True, False])
def test_the_released_layout_loads_strictly(positions):
    model = LoMaR(**SMALL)
    state = official_state_dict(model, positions)
    model.load_state_dict(state, strict=True)
    assert set(model.state_dict()) == set(state) - {"pos_embed"}


@pytest.mark.parametrize("rel_pos, abs_pos", [(True, False), (False, True), (True, True)])
def test_variants_train(rel_pos, abs_pos):
    model = LoMaR(**SMALL, rel_pos=rel_pos, abs_pos=abs_pos)
    model(torch.randn(2, 3, 40, 40)).loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert ("pos_embed" in model.state_dict()) == abs_pos


def test_absolute_positions_serve_other_sizes():
    model = LoMaR(**SMALL, rel_pos=False, abs_pos=True)
    assert model(torch.randn(1, 3, 48, 20)).loss.isfinite()


def test_impossible_model_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="window_size.* 11"):
        LoMaR(**(SMALL | {"window_size": 11}))
    with pytest.raises(ValueError, match="41x41"):
        LoMaR(**(SMALL | {"img_size": 41}))
    with pytest.raises(ValueError, match="mask_ratio"):
        LoMaR(**(SMALL | {"mask_ratio": 0.1}))


def test_an_image_smaller_than_a_window_is_refused():
    with pytest.raises(ValueError, match="window_size"):
        LoMaR(**SMALL)(torch.randn(1, 3, 40, 8))


@pytest.mark.filterwarnings("ignore:.*functools.lru_cache")
def test_everything_behind_the_noise_is_one_compiled_graph():
    model, images = LoMaR(**SMALL), torch.randn(2, 3, 40, 40)
    noise = torch.rand(2, *model.noise_shape)
    expected = model(images, noise=noise).loss
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, noise=noise).loss, expected)
