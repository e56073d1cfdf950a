"""kNN on the frozen features of ImageNet-1k at 224x224: nothing is trained, minutes on a GPU."""

from ..common.finetune import data, model, train

train.mode = "knn"
train.total_batch_size = 256
train.output_dir = "output/knn_lomar_vit_b_224"
