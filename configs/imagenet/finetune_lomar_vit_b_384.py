"""Fine-tuning on ImageNet-1k at 384x384, starting from the classifier fine-tuned at 224.

Relative positions need no change for the larger grid, and the head is loaded as well. The schedule
is short, because the weights have been trained on the task. Set `train.init_checkpoint` to the
`model_final.pth` of the 224 run.
"""

from ..common.finetune import data, model, train

model.img_size = 384
data.crop_pct = 1.0
train.epochs = 30
train.output_dir = "output/finetune_lomar_vit_b_384"
