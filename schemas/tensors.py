"""Named tensors: the payload of models and updates.

A payload is a flat mapping from ``group/index`` to an array, in the order of the Keras model's
weights. Groups: ``trainable``; ``non_trainable`` (batch-norm statistics: values, never deltas, and
averaged, never touched by a server optimizer; those that are no floating-point numbers are never
averaged either); and what a strategy adds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Tensors = dict[str, Array]
#: Name -> (dtype, shape).
Spec = dict[str, tuple[str, tuple[int, ...]]]

#: dtypes that may travel: fixed size, no objects, no strings.
DTYPES: Mapping[str, np.dtype[np.generic]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *("float16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: A group, and what its tensors are called: numbers, or a user's own names, or those of layers.
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}(/[A-Za-z0-9_.-]{1,100}){1,10}")


#: The hash of weights that every worker builds by itself, shape (32,).
FROZEN = "non_trainable/frozen.sha256"


def group(name: str, tensors: Mapping[str, Array]) -> list[Array]:
    """The arrays of one group, in order."""
    return [array for key, array in tensors.items() if key.startswith(name + "/")]


def model_groups(tensors: Mapping[str, Array]) -> Tensors:
    """The model itself, without what a strategy adds."""
    return {k: a for k, a in tensors.items() if k.startswith(("trainable/", "non_trainable/"))}


def named(name: str, arrays: Sequence[Array]) -> Tensors:
    """A list of arrays as the tensors ``name/0``, ``name/1``, …"""
    return {f"{name}/{i}": array for i, array in enumerate(arrays)}


def spec(tensors: Mapping[str, Array]) -> Spec:
    """Name -> (dtype, shape): what has to agree between a model and its updates."""
    return {key: (dtype_name(array), array.shape) for key, array in tensors.items()}


def misfit(found: Spec, wanted: Spec, known_as: Mapping[str, str] | None = None) -> str | None:
    """The first tensor that is another than is wanted, for a person; None where all agree.

    known_as: what a person calls them, said beside.
    """
    for name in wanted | found:
        if found.get(name) != wanted.get(name):
            called = f" ({known_as[name]})" if known_as and name in known_as else ""
            there = found.get(name, "missing")
            return f"{name}{called} is {there}, not {wanted.get(name, 'there')}"
    return None


def dtype_name(array: Array) -> str:
    """``array.dtype.name``, which NumPy makes anew each time, slowly."""
    return _DTYPE_NAMES.get(array.dtype) or array.dtype.name


def is_float(array: Array) -> bool:
    """Whether its values are floating-point numbers, bfloat16 included: such as can be averaged."""
    return array.dtype.kind == "f" or array.dtype == DTYPES["bfloat16"]


def tensors_sha256(tensors: Mapping[str, Array]) -> str:
    """SHA-256 over names, dtypes, shapes and little-endian bytes, in order."""
    digest = hashlib.sha256()
    for key, array in tensors.items():
        digest.update(f"{key} {dtype_name(array)} {array.shape}\n".encode())
        digest.update(raw(array))
    return digest.hexdigest()


def raw(array: Array) -> memoryview:
    """The array's little-endian bytes in C order, without a copy where it has them already."""
    little = DTYPES.get(dtype_name(array), array.dtype)
    return np.ascontiguousarray(array, dtype=little).reshape(-1).view(np.uint8).data
