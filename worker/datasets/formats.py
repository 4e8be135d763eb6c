"""The file formats in which data sets travel: idx, and pickles that are not trusted."""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np

from fluffle.worker.datasets.recipe import Pixels


def read_idx(data: bytes) -> Pixels:
    """The uint8 array of an idx file (LeCun: 0 0 8 rank, big-endian uint32 sizes, then bytes).

    Raises: ValueError.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("no idx file of unsigned bytes")
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    if len(data) != start + math.prod(shape):
        raise ValueError(f"an idx file of shape {shape} has not {len(data)} bytes")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into an old pickle."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not admitted")
    return text.encode("latin1")


#: All that a pickle of plain arrays needs. NumPy itself says which function rebuilds one.
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def read_pickled_arrays(data: bytes, encoding: str = "latin1") -> Any:
    """Tuples, lists and maps of NumPy arrays, from a pickle of Python 2 or 3.

    Raises: pickle.UnpicklingError for everything else that a pickle can name, before it is called.
    """
    return _ArraysOnly(io.BytesIO(data), encoding=encoding).load()
