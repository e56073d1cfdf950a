"""Fine-tuning on ImageNet-1k at 224x224, ViT-B/16 with relative positions: the paper's recipe.

100 epochs, batch 1024. From the backbone that `configs/pretrain/lomar_vit_b_224_1600ep.py` wrote:

    finetune.py --config-file configs/imagenet/finetune_lomar_vit_b_224.py --num-gpus 8 \
        data.path=IMAGENET train.init_checkpoint=output/pretrain/.../backbone_final.pth
"""

from ..common.finetune import data, model, train

train.output_dir = "output/finetune_lomar_vit_b_224"
