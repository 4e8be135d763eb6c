"""A data set's recipe: its arrays, their hashes, and its sources."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import UserError

Pixels = NDArray[np.uint8]
Arrays = Mapping[str, NDArray[Any]]

#: progress(what is happening, bytes so far, bytes in all or None where nobody knows).
Progress = Callable[[str, int, int | None], None]
#: Reads the arrays from wherever they are; may use the empty folder that it is handed.
#: Raises: Unavailable.
Read = Callable[[Path, Progress], Arrays]

FIELDS = ("x_train", "y_train", "x_test", "y_test")
#: The fields of data that comes with owners of its own: of what trains, and of the test.
OWNERS = ("owner_train", "owner_test")


class Unavailable(Exception):
    """This source has nothing for us. One line that says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Examples and their targets; read-only and mapped from disk where they come from a file.

    Shapes: ``x_…`` (examples, …), ``y_…`` (examples, …): the class, or one for each position.
    ``owner_…`` (examples,): whose example it is, 0 to N - 1; None where nobody's.
    """

    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]
    owner_train: NDArray[Any] | None = None
    owner_test: NDArray[Any] | None = None


class Expected(NamedTuple):
    """What an array has to be."""

    shape: tuple[int, ...]
    #: Of the bytes in C order. None: the source's files are checked instead, and the cache
    #: remembers what it was given.
    sha256: str | None
    dtype: str = "uint8"


@dataclass(frozen=True, slots=True)
class Source:
    """One place that has the data."""

    name: str
    read: Read


@dataclass(frozen=True, slots=True)
class Recipe:
    """A data set that can be fetched: where from, and what its arrays have to be.

    >>> def make(folder, progress):
    ...     return {"x_train": np.zeros((2, 3), np.uint8)}
    >>> arrays = {"x_train": Expected((2, 3), sha256=None)}
    >>> toy = Recipe("toy", "zeros", arrays, (Source("made", make),), ("none",), opens=np.load)
    >>> toy.check("made", make(None, None))
    """

    name: str
    summary: str
    arrays: Mapping[str, Expected]
    #: In the order in which they are tried.
    sources: tuple[Source, ...]
    #: What the classes are called, in their order.
    classes: tuple[str, ...]
    #: Reads a file or folder that somebody has brought. Raises: Unavailable.
    opens: Callable[[Path], Arrays]

    def check(self, source: str, arrays: Arrays) -> None:
        """Raises: UserError if these are not exactly the arrays of this data set."""
        for field, expected in self.arrays.items():
            array = arrays[field]
            if array.dtype != expected.dtype or array.shape != expected.shape:
                wanted = f"{expected.dtype}{list(expected.shape)}"
                found = f"{array.dtype}{list(array.shape)}, not {wanted}"
            elif expected.sha256 not in (None, sha256(array)):
                found = f"other bytes (mean {array.mean():.4f})"
            else:
                continue
            raise UserError(f"{source}: {field} is not that of {self.name}: {found}")


def sha256(array: NDArray[Any]) -> str:
    """The digest of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
