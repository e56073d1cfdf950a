"""Tar shards: the same images as in the folder, in an exact and resumable order."""

import io
import itertools
import os
import sys
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lomar_det.data import stream
from lomar_det.data.images import image_size, load_image
from lomar_det.data.stream import SeededDataset, StreamSampler, stream_loader
from lomar_det.errors import UserError
from lomar_pretrain.data import shard_writer
from lomar_pretrain.data.shard_writer import write_shards
from lomar_pretrain.data.shards import permute_by_shards
from lomar_pretrain.data.sources import ImageList, find_images
from lomar_pretrain.data.transforms import PretrainTransform


@pytest.fixture
def folder(tmp_path):
    """Eleven images of several formats."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(11):
        name = f"{'sub/' if n % 2 else ''}{n}.{('png', 'jpg', 'TIFF')[n % 3]}"
        pixels = rng.integers(0, 256, (20 + 4 * n, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def shards(folder, tmp_path):
    return write_shards(find_images(folder), tmp_path / "shards", shard_mb=0.008)


def contents(images):
    return sorted(image.read_bytes() for image in images)


def test_shards_equal_the_folder(folder, shards):
    assert len(shards) > 2 and [p.name for p in shards] == sorted(os.listdir(shards[0].parent))
    files, packed = find_images(folder), find_images(shards[0].parent)
    assert len(packed) == 11 and contents(packed) == contents(files)
    assert packed[0].name.endswith((".png", ".jpg", ".tiff"))
    assert str(packed[-1]).startswith(f"{shards[-1]}/")
    assert load_image(packed[3]).size == image_size(packed[3])
    for pattern in (f"shards-{{000000..{len(shards) - 1:06d}}}.tar", "*.tar"):
        assert contents(find_images(shards[0].parent / pattern)) == contents(files)


def test_webdataset_reads_them(shards):
    webdataset = pytest.importorskip("webdataset")
    dataset = webdataset.WebDataset([str(p) for p in shards], shardshuffle=False).decode("pil")
    assert sum(1 for _ in dataset) == 11


def test_mixtures(folder, shards, tmp_path):
    (tmp_path / "all.txt").write_text(f"shards/{shards[1].name}\nimages/0.png\n")
    images = find_images([shards[0], tmp_path / "all.txt", folder / "sub"])
    assert [type(image).__name__ for image in images][:6] == ["PosixPath"] * 6
    in_shards = {image.shard for image in itertools.islice(images, 6, None)}
    assert in_shards == {str(shards[0]), str(shards[1])}


def test_other_members_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("1.jpg", "1.json", "._2.jpg", "é" * 150 + ".png", "sub/3.image.WEBP"):
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            tar.addfile(info, io.BytesIO(name.encode()))
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo("4.jpg")
            info.type = kind
            tar.addfile(info)
    found = find_images(tmp_path)
    assert [image.name for image in found] == ["1.jpg", "é" * 150 + ".png", "sub/3.image.WEBP"]
    assert [image.read_bytes().decode() for image in found] == [image.name for image in found]


def test_a_folder_of_images_and_shards_uses_the_images_and_says_so(folder, shards, caplog):
    shards[0].rename(folder / "download.tar")
    assert len(find_images(folder)) == 11
    assert "download.tar" in caplog.text


def cut(data, members):
    return data[: members[2].offset_data + 5]


def cut_header(data, members):
    return data[: members[2].offset + 100]


def zeroed(data, members):
    start = members[2].offset
    return data[:start] + b"\xaa" * 512 + data[start + 512 :]


@pytest.mark.parametrize("damage", [cut, cut_header, zeroed])
def test_damaged_shards_give_what_is_whole(folder, tmp_path, damage, caplog):
    (whole,) = write_shards(find_images(folder), tmp_path / "shards")
    with tarfile.open(whole) as tar:
        members = tar.getmembers()
    expected = [image.read_bytes() for image in itertools.islice(find_images(whole), 2)]
    whole.write_bytes(damage(whole.read_bytes(), members))
    assert [image.read_bytes() for image in find_images(whole)] == expected
    assert str(whole) in caplog.text


@pytest.mark.parametrize("content", [b"", b"no archive" * 100])
def test_a_shard_that_is_none_does_not_stop_others(shards, content, caplog):
    total = len(find_images(shards[0].parent))
    lost = len(find_images(shards[0]))
    shards[0].write_bytes(content)
    assert len(find_images(shards[0].parent)) == total - lost
    assert str(shards[0]) in caplog.text
    with pytest.raises(UserError, match=shards[0].name):
        find_images(shards[0])


def test_compressed_and_missing_shards_are_refused(tmp_path, shards):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.add(shards[0])
    with pytest.raises(UserError, match="x.tar.*unpack"):
        find_images(tmp_path / "x.tar")
    shards[1].unlink()
    with pytest.raises(UserError, match="shards-000001.tar"):
        find_images(str(shards[0].parent / "shards-{000000..000002}.tar"))


def test_a_shard_that_shrinks_is_noticed_when_it_is_read(shards):
    images = find_images(shards[0])
    shards[0].write_bytes(shards[0].read_bytes()[:600])
    with pytest.raises(UserError, match=shards[0].name):
        load_image(images[0])


def batches(images, count, start_iter=0, num_workers=0):
    dataset = SeededDataset(images, PretrainTransform(16), seed=5)
    loader = stream_loader(
        dataset,
        4,
        seed=5,
        start_iter=start_iter,
        num_workers=num_workers,
        permutation=images.permutation,
    )
    return torch.stack(list(itertools.islice(loader, count)))


def test_a_stream_from_shards_resumes_whatever_the_number_of_workers(shards):
    images = find_images(shards[0].parent)
    whole = batches(images, 7)
    assert torch.equal(whole[3:], batches(images, 4, start_iter=3, num_workers=2))
    assert len({tuple(batch.flatten().tolist()) for batch in whole}) == 7


# The order of an epoch


class Numbers(ImageList):
    """So many files and shards of so many images, without any of them."""

    def __init__(self, files, shards):
        super().__init__(["x"] * files, [range(n) for n in shards])


sizes = st.tuples(st.integers(0, 9), st.lists(st.integers(0, 6), max_size=12)).filter(
    lambda s: s[0] + sum(s[1])
)


@given(sizes, st.integers(0, 9), st.integers(0, 70))
def test_epochs_are_permutations_and_any_start_continues_them(sizes, seed, start):
    images = Numbers(*sizes)
    size = len(images)

    def take(start, count):
        sampler = StreamSampler(size, seed, start, permutation=images.permutation)
        return list(itertools.islice(sampler, count))

    whole = take(0, 2 * size + start)
    for epoch in range(2):
        numbers = [index for _, index in whole[epoch * size : (epoch + 1) * size]]
        assert sorted(numbers) == list(range(size))
    assert [position for position, _ in whole] == list(range(len(whole)))
    assert take(start, 2 * size) == whole[start:]


@given(sizes, st.integers(1, 5), st.integers(0, 20))
def test_processes_partition_the_stream(sizes, world_size, start):
    images = Numbers(*sizes)

    def take(rank, world_size, count):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream, "get_rank", lambda: rank)
            patch.setattr(stream, "get_world_size", lambda: world_size)
            sampler = StreamSampler(len(images), 1, start, permutation=images.permutation)
            return list(itertools.islice(sampler, count))

    parts = [take(rank, world_size, 6) for rank in range(world_size)]
    together = [pair for group in zip(*parts, strict=True) for pair in group]
    assert together == take(0, 1, 6 * world_size)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(1, 5), st.integers(0, 99))
def test_a_few_shards_are_read_at_a_time(lengths, at_once, seed):
    owner = np.repeat(np.arange(len(lengths)), lengths)
    order = permute_by_shards(lengths, np.random.default_rng(seed), at_once)
    assert sorted(order) == list(range(sum(lengths)))
    first = {s: np.flatnonzero(owner[order] == s).min() for s in range(len(lengths))}
    last = {s: np.flatnonzero(owner[order] == s).max() for s in range(len(lengths))}
    for position in range(len(order)):
        assert sum(first[s] <= position <= last[s] for s in first) <= at_once


def test_files_without_shards_keep_their_order_of_before():
    rng, again = (np.random.default_rng((3, 1)) for _ in range(2))
    assert (Numbers(9, []).permutation(rng) == again.permutation(9)).all()


def test_files_are_spread_among_the_shards():
    order = Numbers(500, [100] * 5).permutation(np.random.default_rng(0))
    assert 200 < (order[:500] < 500).sum() < 300


# Writing


def test_large_images_shrink_and_others_keep_their_bytes(folder, tmp_path):
    files = find_images(folder)
    shards = write_shards(files, tmp_path / "small", shortest_side=28, quality=90)
    small = find_images(shards)
    kept = [f.read_bytes() for f in files if min(image_size(f)) <= 28]
    assert 1 < len(kept) < 11 and set(kept) < set(contents(small))
    shrunk = [image for image in small if image.read_bytes() not in kept]
    assert {min(image_size(image)) for image in shrunk} == {28}
    assert {image.suffix for image in shrunk} == {".jpg"} and len(shrunk) == 11 - len(kept)


def test_shrunk_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "x.jpg", exif=exif)
    (image,) = find_images(write_shards(find_images(tmp_path), tmp_path / "out", 50))
    assert load_image(image).size == (50, 100)


def test_writing_is_the_same_whatever_the_number_of_workers(folder, tmp_path):
    first, second = (
        [
            p.read_bytes()
            for p in write_shards(find_images(folder), tmp_path / str(n), num_workers=n)
        ]
        for n in (0, 2)
    )
    assert first == second


def test_unreadable_images_are_listed_and_left_out(folder, tmp_path):
    (folder / "0.png").write_bytes(b"broken")
    (folder / "z.jpg").symlink_to("gone.jpg")
    (shard,) = write_shards(find_images(folder), tmp_path / "out")
    assert len(find_images(shard)) == 10
    lines = sorted((tmp_path / "out/bad_images.txt").read_text().splitlines())
    assert [line.split("\t")[0] for line in lines] == [f"{folder}/0.png", f"{folder}/z.jpg"]
    with pytest.raises(UserError, match="bad_images.txt"):
        write_shards(find_images(folder / "0.png"), tmp_path / "nothing")
    assert os.listdir(tmp_path / "nothing") == ["bad_images.txt"]


def test_shards_are_replaced_by_force_alone_and_never_by_half_ones(folder, shards, monkeypatch):
    output = shards[0].parent
    images = find_images(folder)
    before = {path: path.read_bytes() for path in shards}
    with pytest.raises(UserError, match="--force"):
        write_shards(images, output)
    encode, calls = shard_writer.encode, iter(range(20))

    def interrupted(*args):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(shard_writer, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(images, output, force=True, shard_mb=0.008)
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    monkeypatch.setattr(shard_writer, "encode", encode)
    assert write_shards(images, output, force=True) == [shards[0]] == list(output.iterdir())
    assert contents(find_images(output)) == contents(images)


def test_writing_says_what_is_wrong(folder, tmp_path, monkeypatch):
    images = find_images(folder)
    for name in ("shortest_side", "quality", "shard_mb", "num_workers", "max_megapixels"):
        with pytest.raises(UserError, match=f"{name}=-1"):
            write_shards(images, tmp_path / "out", **{name: -1})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/out"):
        write_shards(images, tmp_path / "file" / "out")
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UserError, match="pip install webdataset"):
        write_shards(images, tmp_path / "out")
