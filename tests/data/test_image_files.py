"""What the tools take as --input."""

import pytest

from lomar_det.data.image_files import find_image_files
from lomar_det.errors import UserError


def test_inputs_are_files_folders_and_patterns(tmp_path):
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    files = [folder / "a.png", folder / "b.JPG", folder / "deeper" / "c.tif"]
    for path in (*files, folder / "notes.txt", folder / ".hidden.png"):
        path.touch()
    assert find_image_files([folder]) == files
    assert find_image_files([folder / "[bx].JPG", files[0], folder / "a.*"]) == [files[1], files[0]]
    assert find_image_files([str(tmp_path / "**" / "*.tif")]) == files[2:]
    assert find_image_files([folder / "notes.txt"]) == [folder / "notes.txt"]  # the user knows
    (tmp_path / "empty").mkdir()
    for name in ("empty", "*pty", "x*"):
        with pytest.raises(UserError, match="--input"):
            find_image_files([tmp_path / name])
