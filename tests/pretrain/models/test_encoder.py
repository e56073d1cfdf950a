"""The encoder's arguments, which LoMaR, MAE and the classifier pass on to it."""

import inspect

import pytest
from helpers.common import ROOT

from lomar_det.config.lazy import load_config
from lomar_det.errors import UserError
from lomar_pretrain import MAE, LoMaR, VisionTransformerClassifier, VisionTransformerEncoder

SMALL = dict(img_size=32, patch_size=4, embed_dim=16, depth=1, num_heads=2)
MASKED = {"mask_ratio", "norm_pix_loss"}
DECODER = {"decoder_embed_dim", "decoder_depth", "decoder_num_heads"}
OWN = {
    LoMaR: {"window_size", "num_windows"} | MASKED | DECODER,
    MAE: MASKED | DECODER,
    VisionTransformerClassifier: {"num_classes"},
}


@pytest.mark.parametrize("kind", OWN)
def test_the_signature_lists_the_encoders_arguments(kind):
    encoder = inspect.signature(VisionTransformerEncoder).parameters
    found = inspect.signature(kind).parameters
    assert set(found) == set(encoder) | OWN[kind]
    assert list(found)[:6] == list(encoder)[:6]
    assert kind(*SMALL.values()).architecture == kind(**SMALL).architecture


@pytest.mark.parametrize("kind", OWN)
def test_mistyped_arguments_are_refused(kind):
    with pytest.raises(TypeError, match="windw_size"):
        kind(**SMALL, windw_size=3)


@pytest.mark.parametrize("recipe", ["pretrain/lomar_vit_tiny", "pretrain/mae_vit_tiny"])
def test_mistyped_settings_of_a_config_are_refused(recipe):
    path = ROOT / "configs" / f"{recipe}.py"
    assert load_config(path, ["model.drop_path_rate=0.1"]).model.drop_path_rate == 0.1
    with pytest.raises(UserError, match=r"model\.windw_size"):
        load_config(path, ["model.windw_size=3"])
