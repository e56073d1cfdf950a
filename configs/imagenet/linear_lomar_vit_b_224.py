"""Linear probe on ImageNet-1k at 224x224 of the LoMaR ViT-B/16: MAE's protocol, 90 epochs."""

from ..common.linear_probe import data, model, train

train.output_dir = "output/linear_lomar_vit_b_224"
