"""MAE as LoMaR's baseline: 25 % of the patches of the whole image, ViT-B/16, decoder 8 x 512.

Schedule, optimizer and crops are LoMaR's, so that only the method differs.
"""

from detectron2.config import LazyCall as L

from lomar_pretrain import MAE

from .models.vit import VIT_B
from .pretrain import data, train

model = L(MAE)(
    img_size=224,
    patch_size=16,
    **VIT_B,
    mlp_ratio=4.0,
    decoder_embed_dim=512,
    decoder_depth=8,
    decoder_num_heads=16,
    mask_ratio=0.75,
    norm_pix_loss=True,
    rel_pos=False,
    abs_pos=True,
    attention_backend="auto",
)
