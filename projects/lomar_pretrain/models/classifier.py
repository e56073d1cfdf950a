"""Image classification with a pretrained encoder (design of the paper's fine-tuning).

Shapes: B images, C embed_dim.
"""

from torch import Tensor, nn

from .encoder import VisionTransformerEncoder, takes_arguments_of


class VisionTransformerClassifier(VisionTransformerEncoder):
    """Mean of all patch tokens, LayerNorm (`fc_norm`), linear head.

    The class token stays in the sequence, outside the pooling; there is no norm before it.

    Args:
        *args, **kwargs: The encoder's, see `VisionTransformerEncoder`.
        num_classes: Outputs of the head.
    """

    @takes_arguments_of(VisionTransformerEncoder)
    def __init__(self, *args, num_classes: int = 1000, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = nn.Identity()  # `fc_norm` after pooling takes its place
        self.fc_norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
        self.head = nn.Linear(self.embed_dim, num_classes)
        self.init_weights()
        nn.init.trunc_normal_(self.head.weight, std=2e-5)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> pooled features after ``fc_norm``: (B, C)."""
        return self.fc_norm(self.patch_features(images).mean(dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) -> logits (B, num_classes)."""
        return self.head(self.forward_features(images))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, for timm. It adds biases and norms itself."""
        tables = (f"blocks.{i}.attn.rpe_k.lookup_table_weight" for i in range(len(self.blocks)))
        return {"cls_token", "pos_embed", *tables}

    def group_matcher(self, coarse: bool = False) -> dict:
        """How timm numbers layers, for layer-wise learning rates: stem, blocks, head."""
        blocks = r"^blocks" if coarse else r"^blocks\.(\d+)"
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": blocks}
