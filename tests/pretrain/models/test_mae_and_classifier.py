"""MAE and the classifier: what is particular to them."""

import pytest
import torch

from lomar_det.checkpoint import load_weights, save_backbone
from lomar_det.layers import TokenGrid
from lomar_det.modeling import LoMaRViT
from lomar_pretrain import MAE, VisionTransformerClassifier

SMALL = dict(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2)
DECODER = dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)


@pytest.mark.parametrize("rel_pos, abs_pos", [(False, True), (True, False)])
def test_mae_trains_every_parameter(rel_pos, abs_pos):
    model = MAE(**SMALL, **DECODER, rel_pos=rel_pos, abs_pos=abs_pos)
    out = model(torch.randn(2, 3, 32, 32))
    out.loss.backward()
    assert out.pred.shape == (2, 64, 48) and (out.mask.sum(1) == 48).all()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_mae_sees_the_visible_patches_only():
    model = MAE(**SMALL, **DECODER, rel_pos=True, abs_pos=False).eval()
    torch.nn.init.normal_(model.blocks[0].attn.rpe_k.lookup_table_weight)
    images, noise = torch.randn(1, 3, 32, 32), torch.rand(1, 64)
    first = model(images, noise)
    hidden = first.mask.view(1, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    second = model(torch.where(hidden, torch.randn_like(images), images), noise)
    torch.testing.assert_close(first.pred, second.pred)


def test_released_mae_layout_loads_strictly():
    """ViT-B/16's names and shapes, as the authors list them for their pretraining files."""
    with torch.device("meta"):
        model = MAE()
    linears = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4, "mlp.fc2": 1}
    shapes = {"mask_token": (1, 1, 512), "cls_token": (1, 1, 768)}
    shapes |= {"patch_embed.proj.weight": (768, 3, 16, 16), "patch_embed.proj.bias": (768,)}
    shapes |= {"decoder_embed.weight": (512, 768), "decoder_embed.bias": (512,)}
    shapes |= {"decoder_pred.weight": (768, 512), "decoder_pred.bias": (768,)}
    parts = (("", "norm", 768, 12), ("decoder_", "decoder_norm", 512, 8))
    for prefix, norm, dim, depth in parts:
        shapes |= {f"{prefix}pos_embed": (1, 197, dim)}
        shapes |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
        for b in (f"{prefix}blocks.{n}." for n in range(depth)):
            for name in (b + "norm1", b + "norm2"):
                shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
            for name, factor in linears.items():
                wide = 4 * dim if name == "mlp.fc2" else dim
                shapes[f"{b}{name}.weight"] = (factor * dim, wide)
                shapes[f"{b}{name}.bias"] = (factor * dim,)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    model.load_state_dict(state, strict=True)


def test_mae_with_irpe_goes_into_the_detector_as_lomar_does(tmp_path):
    model = MAE(**(SMALL | DECODER), rel_pos=True, abs_pos=False)
    torch.nn.init.normal_(model.blocks[1].attn.rpe_k.lookup_table_weight)
    save_backbone(tmp_path / "b.pth", model.state_dict(), {})
    backbone = LoMaRViT(**(SMALL | {"window_size": 3, "window_block_indexes": [0]}))
    load_weights(backbone, tmp_path / "b.pth")
    table = backbone.blocks[1].attn.rpe_k.lookup_table_weight
    assert torch.equal(table, model.blocks[1].attn.rpe_k.lookup_table_weight[..., :49])


def test_mae_encoder_does_not_depend_on_the_order_of_patches():
    model = MAE(**SMALL, **DECODER, rel_pos=True, abs_pos=True).eval()
    torch.nn.init.normal_(model.blocks[0].attn.rpe_k.lookup_table_weight)
    patches, ids = torch.randn(1, 64, 48), torch.randperm(64)[None, :16]
    order = torch.randperm(16)
    first, second = model.encode(patches, ids), model.encode(patches, ids[:, order])
    torch.testing.assert_close(first[:, 1:][:, order], second[:, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rel_pos, abs_pos", [(True, False), (False, True)])
def test_classifier_pools_patch_tokens_then_normalises(rel_pos, abs_pos):
    model = VisionTransformerClassifier(
        **SMALL, num_classes=5, rel_pos=rel_pos, abs_pos=abs_pos
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    x = model.patch_embed(images)
    if abs_pos:
        x = x + model.pos_embed[:, 1:]
    x = model.forward_blocks(model.with_cls_token(x), TokenGrid(8, 8, cls_token=True))
    features = model.fc_norm(x[:, 1:].mean(1))
    torch.testing.assert_close(model.forward_features(images), features)
    torch.testing.assert_close(model(images), model.head(features))
    assert not {"norm.weight", "norm.bias"} & set(model.state_dict())
