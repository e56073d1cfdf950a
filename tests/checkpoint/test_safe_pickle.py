"""Pickles of numpy arrays, read without running anything."""

import builtins
import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from lomar_det.checkpoint.safe_pickle import load_numpy_pickle
from lomar_det.checkpoint.serialization import load_plain
from lomar_det.errors import UserError

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">f4"),
    "half": np.ones(3, np.float16),
    "scalar": np.array(5),
}


def read(content: bytes):
    return load_numpy_pickle(io.BytesIO(content))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_model_zoo_file_gives_the_arrays(tmp_path, protocol):
    model = OrderedDict(ARRAYS)
    model._metadata = OrderedDict(version=1)  # as state_dict() leaves it
    data = {"model": model, "__author__": "x", "matching_heuristics": True, "step": np.float32(2)}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps(data, protocol))
    read = load_plain(path)
    assert read["__author__"] == "x" and read["matching_heuristics"] is True and read["step"] == 2
    assert read["model"].keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        wanted = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        assert torch.equal(read["model"][name], wanted), name
        assert read["model"][name].dtype == wanted.dtype


def test_names_of_numpy_1_are_known():
    content = pickle.dumps({"a": ARRAYS["matrix"]}, 2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in content
    assert torch.equal(read(content)["a"], torch.arange(6.0).reshape(2, 3))


def test_pickles_of_python_2_are_known():
    # {"a": one float32} as Python 2 wrote it: names and the array's bytes are its plain strings
    content = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K\x01\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x00\xc0?tbs."
    )
    assert pickle.loads(content, encoding="latin1")["a"][0] == 1.5  # what numpy makes of it
    assert torch.equal(read(content)["a"], torch.tensor([1.5]))


class Call:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(flag) -> dict:
    touch = f"touch {flag}"
    array = np.ones(2, np.float32)
    return {
        "os.system": Call(os.system, touch),
        "eval": Call(builtins.eval, f"open({str(flag)!r}, 'w')"),
        "exec": Call(builtins.exec, f"open({str(flag)!r}, 'w')"),
        "open": Call(open, str(flag), "w"),
        "getattr": Call(getattr, array, "tofile"),
        "__import__": Call(builtins.__import__, "antigravity"),
        "torch.load": Call(torch.load, str(flag)),
        "torch gadget": Call(torch.utils.collect_env.run, touch),
        "numpy gadget": Call(np.load, str(flag), None, True),
        "objects": np.array([Call(os.system, touch)], dtype=object),
        "plain objects": np.array([[1, 2], "text"], dtype=object),
        "records": np.zeros(2, dtype=[("x", "f4")]),
        "text": np.array(["text"]),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": {"w": x}}], ids=["bare", "deep"])
def test_nothing_of_a_malicious_pickle_runs(tmp_path, protocol, wrap):
    flag, path = tmp_path / "flag", tmp_path / "evil.pkl"
    for name, attack in attacks(flag).items():
        path.write_bytes(pickle.dumps(wrap(attack), protocol))
        with pytest.raises(UserError, match="evil.pkl"):
            load_plain(path)
        assert not flag.exists(), name


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
HAND_MADE = {
    # GLOBAL with dots looks for attributes from protocol 4 on
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    "state of a function": b"\x80\x02" + RECONSTRUCT + b"}U\x08__call__I1\nsb.",
    "attribute of a function": b"\x80\x02" + RECONSTRUCT + b"N}U\x09_functionI1\ns\x86b.",
    "new object of a function": b"\x80\x02" + RECONSTRUCT + b")\x81.",
    "extension registry": b"\x80\x02\x82\x01.",
    "persistent id": b"Ppath\n.",
    "array without content": b"\x80\x02}U\x01acnumpy\nndarray\n)Rs.",
    "a function as a value": b"\x80\x02" + RECONSTRUCT + b".",
    "no dict": pickle.dumps([1, 2]),
    "list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "short": pickle.dumps({"a": ARRAYS["matrix"]})[:-20],
    "not a pickle": b"weights",
}


@pytest.mark.parametrize("attack", HAND_MADE)
def test_hand_made_pickles_are_refused(tmp_path, attack):
    (tmp_path / "evil.pkl").write_bytes(HAND_MADE[attack])
    with pytest.raises(UserError, match="evil.pkl"):
        load_plain(tmp_path / "evil.pkl")
    assert torch.equal(read(pickle.dumps(ARRAYS))["half"], torch.ones(3).half())  # as before


class BadArray:
    """Pickled as numpy does it, with a state of our choice."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        return np.ndarray, ((0,),), self.state


@pytest.mark.parametrize("shape", [(3, 3), (-2, -3), (2**40, 3), (2, 2), (6.0,), 6])
def test_bytes_must_fit_the_shape(shape):
    data = ARRAYS["matrix"].tobytes()
    good = pickle.dumps({"a": BadArray(1, (6,), np.dtype("f4"), False, data)})
    assert torch.equal(read(good)["a"], torch.arange(6.0))
    with pytest.raises((pickle.UnpicklingError, ValueError, TypeError)):
        read(pickle.dumps({"a": BadArray(1, shape, np.dtype("f4"), False, data)}))
