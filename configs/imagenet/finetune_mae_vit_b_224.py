"""Fine-tuning on ImageNet-1k at 224x224 of a ViT-B/16 with absolute positions: the MAE baseline."""

from ..common.finetune import data, model, train

model.rel_pos = False
model.abs_pos = True
train.output_dir = "output/finetune_mae_vit_b_224"
