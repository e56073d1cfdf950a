"""Asymmetric LoMaR with a small ViT and decoder: the counterpart of `lomar_vit_tiny.py`.

A step takes a third of LoMaR's time on a CPU.
"""

from .lomar_vit_tiny import data, model, train

model.update(decoder_depth=1, decoder_embed_dim=64, decoder_num_heads=2)
train.output_dir = "output/pretrain/lomar_asym_vit_tiny"
