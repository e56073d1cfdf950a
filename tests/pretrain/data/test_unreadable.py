"""Unreadable images: replaced, listed, counted; never a crash and never in silence."""

import json
import os
import shutil

import pytest
import torch
from helpers.broken_files import BROKEN, NOISE, ODD
from helpers.common import TINY_PRETRAIN, tool_args
from PIL import Image

from lomar_det.checkpoint.serialization import load_plain
from lomar_det.data.images import UnreadableImageError, image_size, load_image
from lomar_det.data.stream import SeededDataset, stream_loader
from lomar_det.errors import UserError
from lomar_pretrain.data.shard_writer import write_shards
from lomar_pretrain.data.sources import ImageList, find_images
from lomar_pretrain.data.transforms import PretrainTransform
from lomar_pretrain.data.unreadable import BadImageFile, ReplaceUnreadable, collate_images
from lomar_pretrain.runs import pretrain as pretraining

pytestmark = pytest.mark.run


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.png"
    Image.fromarray(NOISE).save(path)
    return path


def sample(paths, seed=0):
    """The first sample of the stream: the tensor, and what it replaces."""
    images = ImageList([str(path) for path in paths])
    return SeededDataset(images, ReplaceUnreadable(PretrainTransform(16)), seed)[(0, 0)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_replaced_and_named(tmp_path, good, kind):
    path = tmp_path / "x.jpg"
    BROKEN[kind](path)
    with pytest.raises(UnreadableImageError, match="x.jpg") as error:
        load_image(path)
    try:
        image_size(path)  # its header may be fine
    except UnreadableImageError as other:
        assert "x.jpg" in str(other)
    image, failed = sample([path, good])
    assert image.shape == (3, 16, 16) and image.isfinite().all()
    assert set(failed) == {(str(path), error.value.reason)}
    assert error.value.reason and "\n" not in error.value.reason


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ODD)
def test_an_odd_file_is_read(tmp_path, kind):
    path = tmp_path / "x.jpg"
    ODD[kind](path)
    assert load_image(path).size == image_size(path) == (64, 48)
    assert sample([path])[1] == []


def test_a_file_without_permission(good):
    user = os.geteuid()
    good.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        with pytest.raises(UnreadableImageError, match="good.png.*Permission denied"):
            load_image(good)
    finally:
        os.seteuid(user)


def test_nothing_but_broken_files_is_one_clear_error(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="x.jpg.*data.path"):
        sample([tmp_path / "x.jpg"])


def folder_of(path, good, bad):
    """So many small images, and files that are none, their names mixed."""
    path.mkdir()
    for n in range(good + bad):
        Image.fromarray(NOISE // (n + 1)).save(path / f"{n * 7 % (good + bad):03d}.png")
    for n in range(bad):
        (path / f"{n * 5 % (good + bad):03d}.png").write_bytes(b"broken")
    return path


def listed(output):
    lines = (output / "bad_images.txt").read_text().splitlines()
    assert all(reason for _, reason in (line.split("\t") for line in lines))
    return sorted(line.split("/")[-1].split("\t")[0] for line in lines)


def test_batches_do_not_depend_on_the_workers(tmp_path):
    images = find_images(folder_of(tmp_path / "images", 8, 4))

    def batches(num_workers):
        dataset = SeededDataset(images, ReplaceUnreadable(PretrainTransform(16)), 3)
        loader = iter(stream_loader(dataset, 4, 3, 0, 1, num_workers, collate_images))
        return [next(loader) for _ in range(6)]

    for (first, bad), (second, also_bad) in zip(batches(0), batches(2), strict=True):
        assert torch.equal(first, second) and bad == also_bad


def pretrain(images, output, *opts, resume=False):
    settings = [*TINY_PRETRAIN, f"data.path={images}", f"train.output_dir={output}", *opts]
    return pretraining.main(tool_args("pretrain/lomar_vit_tiny.py", *settings, resume=resume))


def losses(output):
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


@pytest.fixture
def without_figures(monkeypatch):
    """Runs that do not draw their loss and their reconstructions, which takes seconds."""
    monkeypatch.setattr(pretraining, "plot_training", lambda *_: None)


def test_a_run_replaces_lists_and_reports(tmp_path):
    images, output = folder_of(tmp_path / "images", 9, 3), tmp_path / "out"
    output.mkdir()
    (output / "bad_images.txt").write_text("of an earlier run\tno matter\n")
    # a quarter is bad: but fewer than ten do not end a run
    opts = ["train.epochs=3", "train.picture_epochs=3", "data.max_bad_fraction=0.01"]
    pretrain(images, output, *opts)
    assert listed(output) == ["000.png", "005.png", "010.png"]
    log = (output / "log.txt").read_text()
    assert log.count("replaced by another image: ") == 1  # the others in the same minute
    assert f"listed in {output}" in log
    assert (output / "reconstruction.png").is_file()


@pytest.mark.usefixtures("without_figures")
def test_a_resumed_run_goes_on_with_the_list(tmp_path):
    images, output = folder_of(tmp_path / "images", 9, 3), tmp_path / "out"
    pretrain(images, output, "train.epochs=2")
    pretrain(images, output, "train.epochs=4", "data.num_workers=2", resume=True)
    assert listed(output) == ["000.png", "005.png", "010.png"]
    assert len(losses(output)) == 12


@pytest.mark.usefixtures("without_figures")
def test_too_many_end_the_run_with_a_checkpoint_to_continue_from(tmp_path):
    images, output = folder_of(tmp_path / "images", 22, 11), tmp_path / "out"
    settings = ["train.epochs=3", "train.checkpoint_epochs=99"]
    with pytest.raises(UserError, match="11 of .* 33 .*max_bad_fraction"):
        pretrain(images, output, *settings)
    saved = (output / "last_checkpoint").read_text()
    stopped = load_plain(output / saved)["iteration"]
    assert len(listed(output)) == 11 and stopped < 9  # within the first epoch or just after
    pretrain(images, output, *settings, "data.max_bad_fraction=0.5", resume=True)
    once = tmp_path / "once"
    pretrain(images, once, *settings, "data.max_bad_fraction=0.5")
    assert losses(output) == losses(once) and listed(output) == listed(once)


def test_where_none_may_be_bad_the_first_ends_the_run(tmp_path):
    images, output = folder_of(tmp_path / "images", 9, 3), tmp_path / "out"
    with pytest.raises(UserError, match="max_bad_fraction"):
        pretrain(images, output, "train.epochs=3", "data.max_bad_fraction=0")
    assert (output / "last_checkpoint").is_file()


@pytest.mark.usefixtures("without_figures")
def test_a_run_on_shards_resumes_bit_for_bit(tmp_path):
    images, folder = find_images(folder_of(tmp_path / "images", 12, 0)), tmp_path / "shards"
    assert len(write_shards(images, folder, shard_mb=0.01)) > 1
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = ["train.epochs=3", "train.checkpoint_epochs=1", "train.max_to_keep=9"]
    pretrain(folder, whole, *settings)
    shutil.copytree(whole, cut)
    (cut / "metrics.json").unlink()
    (cut / "last_checkpoint").write_text("model_0000002.pth")
    pretrain(folder, cut, *settings, "data.num_workers=2", resume=True)
    assert losses(cut) == {i: loss for i, loss in losses(whole).items() if i > 2}


def test_the_list_goes_on_and_names_stay_in_their_lines(tmp_path):
    path = tmp_path / "bad.txt"
    odd = os.fsdecode(b"new\nline\tcaf\xe9.png")
    first = BadImageFile(path)
    assert first.add([(odd, "a"), ("x", "b"), (odd, "c")]) == [
        ("new\\nline\\tcaf\udce9.png", "a"),
        ("x", "b"),
    ]
    assert BadImageFile(path, resume=True).add([(odd, "a"), ("y", "b")]) == [("y", "b")]
    assert path.read_bytes() == b"new\\nline\\tcaf\xe9.png\ta\nx\tb\ny\tb\n"
    assert len(BadImageFile(path)) == 0 and not path.exists()
