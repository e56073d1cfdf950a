"""kNN against a literal loop and scikit-learn; labelled folders with everything that goes wrong."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from lomar_det.errors import UserError
from lomar_pretrain import MAE, LoMaR
from lomar_pretrain.data.class_folders import ClassFolders
from lomar_pretrain.runs.knn import KNNProbe, chance_level, knn_accuracy, split_per_class

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2)


def literal_knn(train, train_labels, test, test_labels, k, temperature):
    """One test feature after the other, in Python's own arithmetic."""
    correct = 0
    for feature, label in zip(test.tolist(), test_labels.tolist(), strict=True):
        neighbours = []
        for other, other_label in zip(train.tolist(), train_labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(feature, other, strict=True))
            neighbours.append((dot / (math.hypot(*feature) * math.hypot(*other)), other_label))
        votes = {}
        for similarity, other_label in sorted(neighbours, reverse=True)[:k]:
            votes[other_label] = votes.get(other_label, 0) + math.exp(similarity / temperature)
        correct += max(votes, key=votes.get) == label
    return correct / len(test)


def random_features(seed=0, classes=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(70) % classes
    centres = torch.randn(classes, 6, generator=generator)
    features = 3 * (centres[labels] * 0.5 + torch.randn(70, 6, generator=generator))
    return features[:40], labels[:40], features[40:], labels[40:]


@pytest.mark.parametrize("k", [1, 5, 20, 500])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_against_a_literal_loop(k, temperature):
    data = random_features()
    expected = literal_knn(*data, k, temperature)
    assert knn_accuracy(*data, k, temperature) == pytest.approx(expected)
    assert 0.3 < expected < 1  # neither chance nor trivial


@pytest.mark.parametrize("k", [1, 7, 20])
def test_knn_against_sklearn(k):
    train, train_labels, test, test_labels = random_features(seed=1)
    model = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train.numpy(), train_labels.numpy())
    expected = model.score(test.numpy(), test_labels.numpy())
    assert knn_accuracy(train, train_labels, test, test_labels, k) == pytest.approx(expected)


def test_a_tiny_temperature_is_the_nearest_neighbour():
    data = random_features()
    assert knn_accuracy(*data, k=20, temperature=1e-6) == knn_accuracy(*data, k=1)


def test_split_halves_every_class_and_is_the_same_each_time():
    labels = torch.tensor([2] * 5 + [0] * 8 + [7])
    train, test = split_per_class(labels)
    assert sorted(train.tolist() + test.tolist()) == list(range(14))
    assert [labels[test].eq(c).sum().item() for c in (0, 2, 7)] == [4, 2, 0]
    again = split_per_class(labels)
    assert torch.equal(again[0], train) and torch.equal(again[1], test)
    assert not torch.equal(split_per_class(labels, seed=1)[1].sort()[0], test.sort()[0])


def test_chance_is_the_largest_class():
    assert chance_level(torch.tensor([0, 0, 0, 2])) == 0.75


@pytest.fixture
def class_folders(tmp_path):
    """Bright and dark images, 6 each, which any feature tells apart."""
    root = tmp_path / "labelled"
    for name, level in (("bright", 200), ("dark", 20)):
        (root / name / "deeper").mkdir(parents=True)
        for i in range(6):
            rng = np.random.default_rng(i)
            pixels = rng.integers(level, level + 40, (30, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / ("deeper" if i % 2 else ".") / f"{i}.png")
    return root


def test_class_folders_hidden_and_empty_ones_are_none(class_folders, lomar_log):
    (class_folders / "nothing").mkdir()
    (class_folders / ".cache").mkdir()
    (class_folders / "dark" / "._0.png").write_bytes(b"a Mac's")
    (class_folders / "dark" / "notes.txt").write_text("no image")
    data = ClassFolders(class_folders)
    assert data.classes == ["bright", "dark"] and data.targets == [0] * 6 + [1] * 6
    assert data[0][0].mode == "RGB" and "nothing" in lomar_log.text
    assert ".cache" not in lomar_log.text


def test_unusable_class_folders_are_refused(tmp_path, class_folders):
    with pytest.raises(UserError, match="gone"):
        ClassFolders(tmp_path / "gone")
    with pytest.raises(UserError, match="deeper.* 0 class"):
        ClassFolders(class_folders / "dark" / "deeper")  # images, but no classes
    for image in (class_folders / "dark").rglob("*.png"):
        image.unlink()
    with pytest.raises(UserError, match="labelled.* 1 class"):
        ClassFolders(class_folders)


@pytest.mark.parametrize("model", [LoMaR(**SMALL, window_size=3), MAE(**SMALL)])
def test_probe_tells_bright_from_dark_and_leaves_the_run_alone(class_folders, model):
    model.train()
    state = torch.get_rng_state()
    probe = KNNProbe(str(class_folders), model.img_size, k=3, batch_size=5)
    assert probe.measure(model) == 100 == probe.measure(model) and probe.chance == 50
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_features_are_the_mean_patch_token_after_the_norm(class_folders):
    model = LoMaR(**SMALL, window_size=3)
    probe = KNNProbe(str(class_folders), model.img_size, batch_size=5)
    features, labels = probe._extract(model)
    tokens = []
    model.norm.register_forward_hook(lambda *args: tokens.append(args[2]))
    with torch.no_grad():
        model.patch_features(probe.images[3][0][None])
    assert tokens[0].shape == (1, 17, 24)  # a class token and 4 x 4 patches
    torch.testing.assert_close(features[3], tokens[0][0, 1:].mean(0))
    assert labels.tolist() == [label for _, label in probe.images.samples]


def test_unreadable_images_are_left_out_and_named(class_folders, lomar_log):
    (class_folders / "dark" / "2.png").write_bytes(b"broken")
    model = LoMaR(**SMALL, window_size=3)
    probe = KNNProbe(str(class_folders), model.img_size, k=3)
    assert probe.measure(model) == 100
    assert "1 of 12" in lomar_log.text and "2.png" in lomar_log.text
    for image in (class_folders / "dark").rglob("*.png"):
        image.write_bytes(b"broken")
    with pytest.raises(UserError, match="train.probe.path.*train.probe.max_images"):
        probe.measure(model)


def test_large_folders_are_thinned_out_evenly(class_folders):
    probe = KNNProbe(str(class_folders), (16, 16), max_images=6)
    assert [label for _, label in probe.images.samples] == [0, 0, 0, 1, 1, 1]


def test_real_photos_of_six_classes(shared_data):
    """Even at random initialisation, features of real photos are better than chance."""
    torch.manual_seed(0)
    model = LoMaR(img_size=64, embed_dim=64, depth=2, num_heads=2, window_size=3)
    probe = KNNProbe(str(shared_data / "trashnet-cls" / "val"), (64, 64), k=5, max_images=90)
    top1 = probe.measure(model)
    assert len({label for _, label in probe.images.samples}) == 6 and 10 < probe.chance < 30
    assert probe.chance < top1 < 100
