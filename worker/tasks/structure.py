"""Inputs and targets of a model: an array, or a dict, list or tuple of arrays, as Keras takes them.

All arrays of one part have the examples on their first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def count_of(part: Any) -> int:
    """How many examples inputs or targets have."""
    return len(next(leaves(part)))


def is_structured(part: Any) -> bool:
    """Whether these are several arrays; lists of numbers are one."""
    if isinstance(part, Mapping):
        return True
    if not isinstance(part, list | tuple):
        return False
    return bool(part) and all(hasattr(one, "shape") or isinstance(one, Mapping) for one in part)


def leaves(part: Any, name: str = "") -> Iterator[Any]:
    """The arrays of inputs or targets."""
    for _, array in named_leaves(part, name):
        yield array


def named_leaves(part: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(what to call it, array), for the arrays of what is called ``name``."""
    if not is_structured(part):
        yield name, part
        return
    entries = part.items() if isinstance(part, Mapping) else enumerate(part)
    for key, one in entries:
        yield from named_leaves(one, f"{name}[{key!r}]")


def mapped(function: Callable[[Any], Any], part: Any) -> Any:
    """The same structure with ``function`` of each array."""
    if not is_structured(part):
        return function(part)
    if isinstance(part, Mapping):
        return {key: mapped(function, one) for key, one in part.items()}
    return type(part)([mapped(function, one) for one in part])


def labels_of(y: Any) -> NDArray[Any] | None:
    """The label of each example, shape (examples,), from labels, a column of them, or one-hot rows.

    None where an example has no single label.
    """
    if is_structured(y):
        return None
    y = np.asarray(y)
    labels: NDArray[Any] = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if labels.ndim == 1:
        return labels
    if y.ndim != 2 or y.dtype.kind not in "iubf":
        return None
    one_hot = bool(np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=1) == 1))
    classes: NDArray[Any] = np.argmax(y, axis=1)
    return classes if one_hot else None
