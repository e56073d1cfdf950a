"""Files from strangers: tensors and plain data go in, everything else is one clear error."""

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from torch import nn

from lomar_det.checkpoint.serialization import load_plain, save_atomically
from lomar_det.errors import UserError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_formats_hold_the_same(tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    save_atomically({"model": TENSORS, "meta": {"depth": 12, "classes": ["tree"]}}, path)
    data = load_plain(path)
    assert data["meta"] == {"depth": 12, "classes": ["tree"]}
    assert data["model"].keys() == TENSORS.keys()
    assert all(torch.equal(data["model"][name], TENSORS[name]) for name in TENSORS)


def test_pickled_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"model": {"a": Evil()}}, tmp_path / "evil.pth")
    torch.save({"a": Evil()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(), 2))
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match=path.name):
            load_plain(path)
    assert "must never run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_damaged_files_are_named(tmp_path, suffix, share):
    path = tmp_path / f"b{suffix}"
    save_atomically({"model": TENSORS, "meta": {}}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=f"b{suffix}"):
        load_plain(path)


def safetensors_bytes(header: dict, length: int | None = None, data: bytes = b"\0" * 8) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape, offsets, dtype="F32"):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_bytes(tensor([2], [0, 8]), length=2**63),
        safetensors_bytes(tensor([2], [0, 8]), length=90_000_000),
        safetensors_bytes(tensor([2**40], [0, 8])),
        safetensors_bytes(tensor([2**40], [0, 2**42])),
        safetensors_bytes(tensor([2], [8, 0])),
        safetensors_bytes(tensor([2], [0, 8], "EVIL")),
        safetensors_bytes({"__metadata__": {"meta": "{"}} | tensor([2], [0, 8])),
    ],
    ids=["length", "length-90MB", "shape", "offsets", "reversed", "dtype", "meta"],
)
def test_safetensors_with_a_forged_header_are_refused(tmp_path, content):
    path = tmp_path / "forged.safetensors"
    path.write_bytes(safetensors_bytes(tensor([2], [0, 8])))
    assert torch.equal(load_plain(path)["model"]["a"], torch.zeros(2))
    path.write_bytes(content)
    with pytest.raises(UserError, match="forged.safetensors"):
        load_plain(path)


def test_a_header_length_that_looks_like_a_tag_is_no_web_page(tmp_path):
    header = tensor([2], [0, 8])
    header["__metadata__"] = {"meta": "{}", "x": ""}
    header["__metadata__"]["x"] = "x" * (ord("<") + 256 - len(json.dumps(header)))
    path = tmp_path / "c.safetensors"
    path.write_bytes(safetensors_bytes(header))
    assert path.read_bytes()[:1] == b"<"
    assert load_plain(path)["model"].keys() == {"a"}


def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path):
    np.savez(tmp_path / "jax.npz", a=np.ones(3))
    (tmp_path / "copy.pth").write_bytes((tmp_path / "jax.npz").read_bytes())
    (tmp_path / "page.pth").write_text("\n<!DOCTYPE html><html>404</html>")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "notes.pth").write_text("weights are in the other folder")
    words = {
        "jax.npz": "numpy",
        "copy.pth": "numpy",
        "page.pth": "download",
        "lfs.pth": "git lfs pull",
        "empty.pth": "empty",
        "notes.pth": "",
        "nowhere.pth": "",
        "": "folder",
    }
    for name, message in words.items():
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            load_plain(tmp_path / name)


def test_detectron2s_suffix_for_matching_is_understood(tmp_path):
    save_atomically({"model": TENSORS}, tmp_path / "mae.pth")
    data = load_plain(f"{tmp_path}/mae.pth?matching_heuristics=True")
    assert data["model"].keys() == TENSORS.keys()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"c{suffix}"
    save_atomically({"model": TENSORS, "meta": {}}, path)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=f"c{suffix}.*No space left"):
        save_atomically({"model": {}, "meta": {}}, path)
    assert torch.equal(load_plain(path)["model"]["a"], TENSORS["a"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
