"""Parts of classification: logits, data, loss, optimizer, accuracy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.literal import literal_logits
from helpers.small_models import randomise
from PIL import Image
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from lomar_det.errors import UserError
from lomar_pretrain import VisionTransformerClassifier, VisionTransformerEncoder
from lomar_pretrain.data.class_folders import FindReadable, LabelledImages
from lomar_pretrain.models.linear_probe import LinearProbe
from lomar_pretrain.runs.classification import (
    AccuracyEvaluator,
    MixedLoss,
    build_optimizer,
    eval_transform,
    read_class_folders,
    train_transform,
)
from lomar_pretrain.runs.settings import AugmentationSettings, FinetuneSettings

CPU = torch.device("cpu")
SMALL = dict(img_size=24, patch_size=4, embed_dim=24, depth=2, num_heads=2)
OPTIMIZER = {
    "optimizer": "adamw",
    "betas": [0.9, 0.999],
    "weight_decay": 0.05,
    "layer_decay": 0.5,
}


@pytest.mark.parametrize("size", [(24, 24), (16, 32)])
@pytest.mark.parametrize("rel_pos, abs_pos", [(True, False), (False, True)])
def test_logits_equal_the_literal_formula(rel_pos, abs_pos, size):
    model = VisionTransformerClassifier(
        **SMALL | {"img_size": size}, num_classes=5, rel_pos=rel_pos, abs_pos=abs_pos
    )
    model = randomise(model).double().eval()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = torch.stack([literal_logits(model.state_dict(), image, 2) for image in images])
    torch.testing.assert_close(model(images), expected, rtol=1e-6, atol=1e-6)
    assert expected.std() > 0.1  # there is something to compare


def test_every_parameter_is_in_one_group_with_the_rate_of_its_layer():
    model = VisionTransformerClassifier(**SMALL, num_classes=5)
    groups = build_optimizer(model, FinetuneSettings(**OPTIMIZER), lr=1.0).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates)
    assert rates.keys() == {id(p) for p in model.parameters()}
    for name, parameter in model.named_parameters():
        depth = {"blocks.0": 2, "blocks.1": 1, "fc_norm": 0, "head": 0}
        power = next((d for prefix, d in depth.items() if name.startswith(prefix + ".")), 3)
        assert rates[id(parameter)] == 0.5**power, name
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim < 2 or "cls_token" in name or "lookup_table" in name
        assert decay[id(parameter)] == (0 if spared else 0.05), name


def test_linear_probe_trains_its_head_alone():
    model = LinearProbe(VisionTransformerEncoder(**SMALL), num_classes=3)
    settings = OPTIMIZER | {"optimizer": "lars", "weight_decay": 0.0, "layer_decay": None}
    optimizer = build_optimizer(model, FinetuneSettings(**settings), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    assert not any(module.training for module in model.encoder.modules())
    F.cross_entropy(model(torch.randn(8, 3, 24, 24)), torch.arange(8) % 3).backward()
    optimizer.step()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    running = {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}
    assert changed == {"head.weight", "head.bias"} | running


@pytest.mark.parametrize("mixup, cutmix", [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_mixed_targets_sum_to_one(mixup, cutmix):
    loss = MixedLoss(FinetuneSettings(mixup=mixup, cutmix=cutmix), CPU, num_classes=7)
    np.random.seed(0)
    for _ in range(20):
        labels = torch.randint(7, (6,))
        _, targets = loss.mixup(torch.randn(6, 3, 8, 8), labels)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        assert (targets > 0).all() and (targets.max(1).values <= 0.9 + 0.1 / 7 + 1e-6).all()


def test_loss_without_mixing_is_the_smoothed_cross_entropy():
    logits, labels = torch.randn(4, 5), torch.tensor([0, 4, 2, 2])
    loss = MixedLoss(FinetuneSettings(mixup=0.0, cutmix=0.0), CPU, num_classes=5)
    value = loss(lambda images: logits, (torch.randn(4, 3, 8, 8), labels))["loss"]
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(value, expected)


def test_an_odd_batch_cannot_be_mixed():
    with pytest.raises(UserError, match="train.total_batch_size"):
        loss = MixedLoss(FinetuneSettings(mixup=0.8, cutmix=0.0), CPU, num_classes=5)
        loss(lambda images: images, (torch.randn(3, 3, 8, 8), torch.zeros(3, dtype=torch.long)))


@pytest.mark.parametrize("num_classes", [2, 12])
def test_accuracy_is_that_of_scikit_learn(num_classes, lomar_log):
    logits, labels = torch.randn(50, num_classes), torch.randint(num_classes, (50,))
    samples = [("a.png", 0), ("b.png", 0)]
    evaluator = AccuracyEvaluator(FindReadable(samples, "Validation"))
    evaluator.reset()
    for part in (slice(0, 32), slice(32, 50)):
        evaluator.process((None, labels[part]), logits[part])
    # an image that cannot be read counts neither as right nor as wrong
    evaluator.process((None, torch.tensor([-2])), torch.randn(1, num_classes))
    result = evaluator.evaluate()["classification"]
    assert result["top1"] == pytest.approx(100 * accuracy_score(labels, logits.argmax(1)))
    top5 = 1.0
    if num_classes > 5:
        top5 = top_k_accuracy_score(labels, logits, k=5, labels=range(num_classes))
    assert result["top5"] == pytest.approx(100 * top5) and result["images"] == 50
    assert "b.png" in lomar_log.text and "a.png" not in lomar_log.text
    evaluator.reset()
    evaluator.process((None, torch.tensor([-1, -2])), torch.randn(2, num_classes))
    with pytest.raises(UserError, match="2 of 2.*a.png"):
        evaluator.evaluate()


def make_classes(folder, counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (40, 30), (i, 0, 0)).save(folder / name / f"{i}.png")
    return folder


def test_one_folder_is_split_class_by_class(tmp_path):
    make_classes(tmp_path, {"cat": 10, "dog": 5, "eel": 2})
    train, val, classes = read_class_folders(tmp_path, 0.2, seed=0)
    assert classes == ["cat", "dog", "eel"]
    assert [sum(label == i for _, label in val) for i in range(3)] == [2, 1, 1]
    assert not set(train) & set(val) and len(train) + len(val) == 17
    assert read_class_folders(tmp_path, 0.2, seed=0)[1] == val
    assert read_class_folders(tmp_path, 0.2, seed=1)[1] != val
    make_classes(tmp_path, {"fox": 1})
    with pytest.raises(UserError, match="fox"):
        read_class_folders(tmp_path, 0.2, seed=0)


def test_train_and_val_folders_are_taken_as_they_are(tmp_path):
    make_classes(tmp_path / "train", {"cat": 3, "dog": 3})
    make_classes(tmp_path / "val", {"cat": 1, "dog": 2})
    train, val, classes = read_class_folders(tmp_path, 0.2, seed=0)
    assert (len(train), len(val), classes) == (6, 3, ["cat", "dog"])
    make_classes(tmp_path / "val", {"eel": 1})
    with pytest.raises(UserError, match="eel"):
        read_class_folders(tmp_path, 0.2, seed=0)


def test_transforms_give_the_models_size(tmp_path):
    make_classes(tmp_path, {"cat": 3, "dog": 3})
    train, val, _ = read_class_folders(tmp_path, 0.3, seed=0)
    transform = train_transform((32, 24), AugmentationSettings())
    image, label = LabelledImages(train, transform)[0]
    assert image.shape == (3, 32, 24) and label == 0
    first, second = (LabelledImages(val, eval_transform((32, 32), 0.875))[1] for _ in range(2))
    assert first[0].shape == (3, 32, 32) and torch.equal(first[0], second[0]) and first[1] == 1
    augmentation = AugmentationSettings(vflip=1.0, hflip=None, others={"re_count": 3})
    transforms = {type(t).__name__: t for t in train_transform((32, 32), augmentation).transforms}
    assert transforms["RandomVerticalFlip"].p == 1 and "RandomHorizontalFlip" not in transforms
    assert transforms["RandomErasing"].max_count == 3
    with pytest.raises(UserError, match="data.augmentation"):
        train_transform((32, 32), AugmentationSettings(auto_augment="no-such-thing"))
