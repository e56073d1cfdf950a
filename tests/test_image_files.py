"""What the tools take as --input."""

import pytest

from lomar_det.errors import UserError
from lomar_det.image_files import find_pictures


def test_inputs_are_files_folders_and_patterns(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    files = [folder / "a.png", folder / "b.JPG", folder / "deeper" / "c.tif"]
    for path in (*files, folder / "notes.txt", folder / ".hidden.png"):
        path.touch()
    assert find_pictures([folder]) == files
    assert find_pictures([folder / "[bx].JPG", files[0], folder / "a.*"]) == [files[1], files[0]]
    assert find_pictures([str(tmp_path / "**" / "*.tif")]) == files[2:]
    assert find_pictures([folder / "notes.txt"]) == [folder / "notes.txt"]  # the user knows
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("empty", "has no pictures"),
        ("*pty", "has no pictures"),
        ("x*", "no file"),
    ):
        with pytest.raises(UserError, match=words):
            find_pictures([tmp_path / name])
