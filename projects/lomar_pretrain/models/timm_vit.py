"""The encoders as timm models: ``timm.create_model("lomar_vit_base_patch16", ...)``.

Importing this module registers them. Weights come from a file of one's own::

    timm.create_model(
        "lomar_vit_base_patch16",
        pretrained=True,
        pretrained_cfg_overlay={"file": "output/pretrain/backbone_final.pth"},
        features_only=True,
    )

Shapes: B images, N tokens with the class token first, H x W patch grid, C embed_dim.
"""

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from lomar_det.errors import UserError
from lomar_det.layers import TokenGrid

from .classifier import VisionTransformerClassifier

POOLS = ("avg", "token", "")


class LoMaRVisionTransformer(VisionTransformerClassifier):
    """`VisionTransformerClassifier`, same weights, with the methods that timm's users call.

    ``forward_features`` returns tokens, as timm's ViTs do, and ``forward_head`` pools them. With
    relative positions any image size is served as it is, without interpolation.

    Args:
        in_chans: Must be 3, as in pretraining.
        global_pool: ``avg`` (mean of the patch tokens), ``token`` (the class token), or nothing.
        drop_rate: Dropout before the head.
        **kwargs: Arguments of `VisionTransformerClassifier`.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **kwargs,
    ):
        if in_chans != 3:
            raise ValueError(
                f"in_chans {in_chans} is not supported: the encoder is pretrained on 3"
            )
        super().__init__(num_classes=max(1, num_classes), **kwargs)
        self.num_features = self.head_hidden_size = self.embed_dim
        self.num_prefix_tokens = 1
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.grad_checkpointing = False
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": self.embed_dim, "reduction": self.patch_size}
            for i in range(len(self.blocks))
        ]

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, height, width), multiples of the patch size -> tokens (B, N, C), not normed."""
        x, grid = self.embed_image(images)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([_OnGrid(block, grid) for block in self.blocks], x)
        return self.forward_blocks(x, grid)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, C) -> logits (B, num_classes), or what the head would see."""
        if self.global_pool == "avg":
            x = x[:, 1:].mean(dim=1)
        elif self.global_pool == "token":
            x = x[:, 0]
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """Outputs of chosen blocks; arguments and results are those of timm's ViT."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt {output_fmt!r} is not NCHW or NLC")
        take, last = feature_take_indices(len(self.blocks), indices)
        x, grid = self.embed_image(x)
        intermediates = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            x = block(x, grid)
            if i in take:
                y = self.fc_norm(x) if norm else x
                patches = y[:, 1:]
                if output_fmt == "NCHW":
                    patches = patches.transpose(1, 2).unflatten(2, (grid.height, grid.width))
                intermediates.append((patches, y[:, :1]) if return_prefix_tokens else patches)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the blocks after the last chosen one, and what is not needed for features."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.fc_norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for other classes; 0 for none."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool {global_pool!r} is not one of {', '.join(POOLS)}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if num_classes:
            nn.init.trunc_normal_(self.head.weight, std=2e-5)
            nn.init.zeros_(self.head.bias)

    def get_classifier(self) -> nn.Module:
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable


class _OnGrid(nn.Module):
    """A block with its grid bound, for timm's `checkpoint_seq`."""

    def __init__(self, block: nn.Module, grid: TokenGrid):
        super().__init__()
        self.block, self.grid = block, grid

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.grid)


def checkpoint_filter_fn(state_dict: dict, model: LoMaRVisionTransformer) -> dict:
    """The encoder's part of a pretraining or backbone file.

    Raises:
        UserError: the file is of another architecture.
    """
    state_dict = state_dict.get("model", state_dict)
    own = model.state_dict()
    kept = {
        name: value
        for name, value in state_dict.items()
        if name in own and (value.shape == own[name].shape or not name.startswith("head."))
    }
    wrong = [name for name, value in kept.items() if value.shape != own[name].shape]
    wrong += [
        name for name in own if name.startswith(("blocks", "patch_embed")) and name not in kept
    ]
    deeper = [name for name in state_dict if name.startswith("blocks") and name not in own]
    if wrong or deeper:
        raise UserError(
            f"the file is of another architecture: {len(wrong) + len(deeper)} tensors differ, "
            f"first {(wrong + deeper)[0]}; create the model that it was pretrained as"
        )
    return kept


def _cfg(**kwargs) -> dict:
    return {
        "url": "",
        "num_classes": 0,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        **kwargs,
    }


_SIZES = {
    "lomar_vit_tiny_patch16": dict(patch_size=16, embed_dim=192, depth=12, num_heads=3),
    "lomar_vit_small_patch16": dict(patch_size=16, embed_dim=384, depth=12, num_heads=6),
    "lomar_vit_base_patch16": dict(patch_size=16, embed_dim=768, depth=12, num_heads=12),
    "lomar_vit_large_patch16": dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16),
    "lomar_vit_huge_patch14": dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
}

default_cfgs = generate_default_cfgs({name: _cfg() for name in _SIZES})


def _create(variant: str, pretrained: bool, **kwargs) -> nn.Module:
    out_indices = kwargs.pop("out_indices", 3)
    return build_model_with_cfg(
        LoMaRVisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        # not strict, as a backbone file has no head; the filter checks the encoder
        pretrained_strict=False,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **_SIZES[variant] | kwargs,
    )


@register_model
def lomar_vit_tiny_patch16(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-Ti/16 with iRPE."""
    return _create("lomar_vit_tiny_patch16", pretrained, **kwargs)


@register_model
def lomar_vit_small_patch16(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-S/16 with iRPE."""
    return _create("lomar_vit_small_patch16", pretrained, **kwargs)


@register_model
def lomar_vit_base_patch16(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-B/16 with iRPE."""
    return _create("lomar_vit_base_patch16", pretrained, **kwargs)


@register_model
def lomar_vit_large_patch16(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-L/16 with iRPE."""
    return _create("lomar_vit_large_patch16", pretrained, **kwargs)


@register_model
def lomar_vit_huge_patch14(pretrained: bool = False, **kwargs) -> nn.Module:
    """ViT-H/14 with iRPE."""
    return _create("lomar_vit_huge_patch14", pretrained, **kwargs)
