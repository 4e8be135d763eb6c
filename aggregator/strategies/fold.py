"""The arithmetic under every strategy: float64 sums that take updates in place, and model casts.

``total += weight * values`` written plainly makes a whole temporary float64 array for each update,
or rounds the product to the update's float32. Here the product is made block by block in one small
scratch: exact products, no copy, one accumulator's memory (figures in benchmarks/folding).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas.tensors import Array, is_float

Sum = NDArray[np.float64]

#: Numbers per block: 256 KiB of float64, which fits into any second-level cache.
_BLOCK = 2**15
#: Numbers per block of a fold: 2 MiB of float64. Memory sets its pace, and memory likes long runs:
#: blocks for the second-level cache took 1.4 times as long.
_FOLDED = 2**18


def blocks(size: int, length: int = _BLOCK) -> Iterator[slice]:
    """Consecutive parts of ``length`` numbers; the last has what is left."""
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


def add_scaled(total: Sum, weight: float, values: Array) -> None:
    """total += weight * values, in place; ``values`` may be read-only and of any number dtype."""
    flat = total.reshape(-1)
    source: NDArray[Any] = values.reshape(-1)
    scratch = np.empty(min(_FOLDED, flat.size))
    for part in blocks(flat.size, _FOLDED):
        product = scratch[: part.stop - part.start]
        np.copyto(product, source[part])  # faster than a product that converts
        if weight != 1:
            product *= weight
        flat[part] += product


def squared_norm(values: Array, base: Array | None = None) -> float:
    """The sum of the squares, of the differences from ``base`` where there is one.

    In float64, block by block: no copy of the array, and the same sum every time.
    """
    flat: NDArray[Any] = values.reshape(-1)
    other: NDArray[Any] | None = None if base is None else base.reshape(-1)
    total = 0.0
    for part in blocks(flat.size):
        block = flat[part].astype(np.float64)
        if other is not None:
            block -= other[part]
        total += float(np.square(block, out=block).sum())
    return total


def writable(array: Array) -> Sum:
    """A sum that may be added into: the array, or a copy where a checkpoint was read into it."""
    if array.dtype == np.float64 and array.flags.writeable and array.flags.c_contiguous:
        return cast(Sum, array)
    return np.array(array, np.float64, order="C")


def cast_like(values: Sum, like: Array) -> Array:
    """``values`` in the dtype and shape of ``like``; integers are rounded, not cut off."""
    if not is_float(like):
        values = np.rint(values)
    return np.asarray(values, np.float64).astype(like.dtype).reshape(like.shape)
