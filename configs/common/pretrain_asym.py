"""Asymmetric LoMaR, ViT-B/16 at 224: our own variant, not the paper's method.

Windows, masks, targets, crops and schedule are the paper's. The encoder sees visible patches alone,
and one decoder block of 256 channels predicts the others; it is thrown away after pretraining.
"""

from .pretrain import data, model, train

model.update(decoder_depth=1, decoder_embed_dim=256, decoder_num_heads=8)
train.epochs, train.warmup_epochs = 400, 20
# A step takes about a third of LoMaR's memory: as many images in a pass as the batch of 8 GPUs.
train.max_batch_per_gpu = 512
train.output_dir = "output/pretrain_asym"
