"""Reads pickles of numpy arrays, as detectron2's model zoo has them, without running anything.

A pickle names functions, and unpickling calls them. This reader allows only the few names that
numpy's pickles of plain arrays use, and calls its own stand-ins for them. So nothing that the file
names is imported, and numpy gets only a type from a short list and the right number of bytes.
"""

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import torch

# type and size in bytes, as numpy writes them
_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1"}


def load_numpy_pickle(file: BinaryIO) -> dict:
    """Reads a dict, possibly of dicts, of arrays (as tensors) and plain values.

    Other plain containers are left out.

    Raises:
        pickle.UnpicklingError: the file names anything else. A damaged file raises whatever pickle
            raises.
    """
    # latin1: numpy arrays in pickles that Python 2 wrote
    data = _Unpickler(file, encoding="latin1").load()
    if not isinstance(data, dict):
        raise pickle.UnpicklingError(f"a dict is expected, not {type(data).__name__}")
    return {
        key: _plain_items(value) if isinstance(value, dict) else value
        for key, value in _plain_items(data, (dict,)).items()
    }


def _plain_items(items: dict, also: tuple = ()) -> dict:
    tensors = {k: v.tensor() for k, v in items.items() if isinstance(v, _Array)}
    plain = (str, int, float, bool, type(None), *also)
    return tensors | {k: v for k, v in items.items() if isinstance(v, plain)}


class _DType:
    """Stands for a numpy.dtype; its state is the byte order."""

    def __init__(self, code: str, *_):
        if code not in _DTYPES:
            raise pickle.UnpicklingError(f"arrays of type {code!r}")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"byte order {state[1]!r}")
        self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """Stands for a numpy.ndarray, whose state is (version, shape, dtype, is_fortran, bytes)."""

    def __init__(self, *_):
        self.numpy = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")

    def fill(self, data: bytes, dtype: _DType, shape: tuple, order: str) -> "_Array":
        if isinstance(data, str):  # Python 2
            data = data.encode("latin1")
        if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
            raise pickle.UnpicklingError("an array that is not made of numbers")
        if len(data) != math.prod(shape) * dtype.numpy.itemsize:
            raise pickle.UnpicklingError(f"{len(data)} bytes for an array of shape {shape}")
        self.numpy = np.frombuffer(data, dtype.numpy).reshape(shape, order=order)
        return self

    def tensor(self) -> torch.Tensor:
        if self.numpy is None:
            raise pickle.UnpicklingError("an array without content")
        native = self.numpy.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(self.numpy, dtype=native, order="C"))


class _Callable:
    """Stands for a function that a pickle names: it can be called, but not changed."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __setstate__(self, state) -> None:
        raise pickle.UnpicklingError("a function cannot have a state")


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype: _DType, data: bytes) -> float:
    return _Array().fill(data, dtype, (), "C").numpy.item()


def _frombuffer(data: bytes, dtype: _DType, shape: tuple, order: str) -> _Array:
    return _Array().fill(data, dtype, shape, order)


_ALLOWED = {
    ("collections", "OrderedDict"): _Callable(OrderedDict),
    ("_codecs", "encode"): _Callable(_latin1),
    ("numpy", "dtype"): _Callable(_DType),
    ("numpy", "ndarray"): _Callable(_Array),
}
for _package in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _Callable(_Array)
    _ALLOWED[f"{_package}.multiarray", "scalar"] = _Callable(_scalar)
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _Callable(_frombuffer)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Callable:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not needed for arrays")
        return _ALLOWED[module, name]

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("a reference to something outside the file")
