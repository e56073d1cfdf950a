"""kNN on frozen features of ImageNet-1k at 224x224: two passes over the images, no training."""

from ..common.linear_probe import data, model, train

train.knn = 20
train.output_dir = "output/knn_lomar_vit_b_224"
