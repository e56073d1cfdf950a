"""MAE with a small ViT and decoder: the counterpart of `lomar_vit_tiny.py`, for a CPU."""

from ..common.models.tiny import TINY_VIT
from ..common.pretrain_mae import model
from .lomar_vit_tiny import data, train

model.update(TINY_VIT)
model.update(decoder_embed_dim=128, decoder_depth=2, decoder_num_heads=4)
train.output_dir = "output/pretrain/mae_vit_tiny"
