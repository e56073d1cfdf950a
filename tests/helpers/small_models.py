"""Encoders and detectors small enough to write and read in no time."""

import pickle

import torch
from torch import nn

from lomar_det.modeling import LoMaRFeaturePyramid, LoMaRViT
from lomar_pretrain import MAE, LoMaR

SMALL = dict(patch_size=16, embed_dim=24, depth=3, num_heads=2)


class Detector(nn.Module):
    """The names of a detector without its heads' cost."""

    def __init__(self, **settings):
        super().__init__()
        net = LoMaRViT(window_size=3, window_block_indexes=[0], **(SMALL | settings))
        self.backbone = LoMaRFeaturePyramid(net, out_channels=8)
        self.roi_heads = nn.Linear(4, 4)


def randomise(model, std=0.2):
    """Sets every parameter: tables of positions start at zero, which would hide mistakes."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model


def pretrained(**settings):
    return randomise(LoMaR(img_size=112, **(SMALL | settings)), std=1.0)


def mae_file(path):
    mae = MAE(img_size=64, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, **SMALL)
    torch.save({"model": mae.state_dict()}, path)
    return mae


def zoo_file(path, state_dict):
    """As detectron2's model zoo publishes its models."""
    arrays = {name: value.numpy() for name, value in state_dict.items()}
    data = {"model": arrays, "__author__": "detectron2", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(data))
    return path
