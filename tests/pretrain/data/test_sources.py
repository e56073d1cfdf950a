"""Where images come from: folders, lists, COCO files, patterns, mixtures."""

import json
import logging
import os
import pickle
import sys

import pytest

from lomar_det.errors import UserError
from lomar_pretrain.data import sources
from lomar_pretrain.data.sources import find_images


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(images, folder):
    return [path.relative_to(folder).as_posix() for path in images]


def test_folders_are_searched_recursively_and_sorted(tmp_path):
    make(tmp_path, "b.JPG", "sub/deep/a.png", "sub-2/x.jpg", "notes.txt", "c.tif", ".hidden.jpg")
    found = find_images(tmp_path)
    assert names(found, tmp_path) == ["b.JPG", "c.tif", "sub/deep/a.png", "sub-2/x.jpg"]
    assert [*found] == sorted(found) and found[-1] == found[3]
    assert pickle.loads(pickle.dumps(found))[2] == found[2]
    with pytest.raises(IndexError):
        found[4]


def test_missing_and_empty_folders_are_named(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=f"{folder.name}.*data.path"):
            find_images(folder)


def test_several_sources_follow_one_another(tmp_path):
    make(tmp_path, "b/1.png", "a/2.png", "c.jpeg", "d.data")
    sources = [tmp_path / "b", tmp_path / "a", tmp_path / "d.data", tmp_path / "c.jpeg"]
    assert names(find_images(sources), tmp_path) == ["b/1.png", "a/2.png", "d.data", "c.jpeg"]


def test_links_that_lead_in_circles_are_followed_once(tmp_path):
    make(tmp_path, "a/1.png", "a/b/2.png", "elsewhere/3.png")
    for link, target in {"a/self": "a", "a/b/up": "a", "a/out": "elsewhere"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "a/dangling.png").symlink_to("gone.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    found = names(find_images(tmp_path / "a"), tmp_path)
    # a dangling link is found to be one when it is opened; a pipe is no file
    assert found == ["a/1.png", "a/b/2.png", "a/dangling.png", "a/out/3.png"]


def test_a_folder_that_cannot_be_searched_is_reported(tmp_path, monkeypatch, caplog):
    make(tmp_path, "a/1.png", "b/2.png")
    scandir = os.scandir

    def deny(folder):
        if str(folder).endswith("a"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", deny)
    assert names(find_images(tmp_path), tmp_path) == ["b/2.png"]
    assert "Permission denied" in caplog.text


def test_a_list_of_paths(tmp_path):
    make(tmp_path, "lists/x/1.png", "2.jpg", "3 # not a comment.png")
    lines = ["# comment", "", "x/1.png\r", f"  {tmp_path}/2.jpg", "../3 # not a comment.png"]
    (tmp_path / "lists/a.txt").write_text("\ufeff" + "\n".join(lines))
    found = [path.resolve() for path in find_images(tmp_path / "lists/a.txt")]
    assert names(found, tmp_path) == ["lists/x/1.png", "2.jpg", "3 # not a comment.png"]


def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    make(tmp_path, name)
    (tmp_path / "a.txt").write_bytes(b"caf\xe9.png\n")
    assert names(find_images(tmp_path), tmp_path) == [name]
    assert names(find_images(tmp_path / "a.txt"), tmp_path) == [name]


@pytest.mark.parametrize("with_root", [False, True])
def test_the_images_of_a_coco_file(tmp_path, with_root):
    # a file of unlabelled images: COCO's own has no "annotations"
    folder = make(tmp_path / ("root" if with_root else "."), "train/1.jpg", "2.jpg", "other.jpg")
    entries = [{"id": 5, "file_name": "train/1.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": entries}))
    found = find_images(tmp_path / "a.json", folder if with_root else None)
    assert names(found, folder) == ["train/1.jpg", "2.jpg"]


def test_patterns(tmp_path):
    make(tmp_path, *(f"part{n}/{n}.png" for n in range(12)), "odd[1]{2}.png")
    assert len(find_images(f"{tmp_path}/part*/*.png")) == 12
    assert len(find_images(f"{tmp_path}/part[0-3]")) == 4
    assert len(find_images(f"{tmp_path}/**/*.png")) == 13
    assert names(find_images(f"{tmp_path}/part{{9..11}}"), tmp_path)[0] == "part9/9.png"
    assert names(find_images(tmp_path / "odd[1]{2}.png"), tmp_path) == ["odd[1]{2}.png"]
    for wrong in ("*.jpg", "part{10..12}", "part{1"):
        with pytest.raises(UserError, match="jpg|part"):
            find_images(f"{tmp_path}/{wrong}")


def test_braces_without_webdataset_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(UserError, match="pip install webdataset"):
        find_images(f"{tmp_path}/{{0..1}}.tar")


MISTAKES = {
    "empty.txt": ("# nothing\n", ""),
    "wrong.txt": ("gone/1.png\ngone/2.png\n", "gone/1.png"),
    "wrong.json": ('{"images": [{"file_name": "gone.png"}]}', "gone.png.*data.image_root"),
    "none.json": ('{"images": []}', ""),
    "text.json": ("no json", ""),
    "list.json": ("[1, 2]", "'images'"),
    "nameless.json": ('{"images": [{"id": 1}]}', "'file_name'"),
    "gone.tar.txt": ("gone.tar\n", "gone.tar"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(tmp_path, name):
    text, words = MISTAKES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}.*{words}"):
        find_images(tmp_path / name)


def test_a_root_without_a_coco_file_is_an_error(tmp_path):
    make(tmp_path, "1.png")
    with pytest.raises(UserError, match="data.image_root.*data.path"):
        find_images(tmp_path, image_root=tmp_path)


def test_a_long_search_shows_progress_and_is_not_quadratic(tmp_path, monkeypatch, caplog):
    entries = [f"/x/{n:06d}.png" for n in range(100_000)]
    monkeypatch.setattr(sources, "walk_files", lambda folder: iter(entries))
    clock = iter(range(1_000_000))  # a second for each image
    monkeypatch.setattr(sources.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        found = sources._search_folder("/x")
    assert found == entries
    assert "10 files in /x" in caplog.text
    images = sources.ImageList(found)
    assert len(images) == 100_000 and str(images[99_999]) == entries[-1]
