"""What a data set is, and how it is recognised whatever the source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas import UserError

Pixels = NDArray[np.uint8]
Arrays = Mapping[str, Pixels]

#: progress(what is happening, bytes so far, bytes in all or None where nobody knows).
Progress = Callable[[str, int, int | None], None]
#: Reads the arrays from wherever they are; may use the empty folder that it is handed.
#: Raises: Unavailable.
Read = Callable[[Path, Progress], Arrays]

FIELDS = ("x_train", "y_train", "x_test", "y_test")


class Unavailable(Exception):
    """This source has nothing for us. One line that says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Examples and their labels, as uint8; read-only and mapped from disk.

    Shapes: ``x_…`` (examples, height, width), values 0..255; ``y_…`` (examples,), the class.
    """

    x_train: Pixels
    y_train: Pixels
    x_test: Pixels
    y_test: Pixels


@dataclass(frozen=True, slots=True)
class Source:
    """One place that has the data."""

    name: str
    read: Read


@dataclass(frozen=True, slots=True)
class Recipe:
    """A data set that can be fetched: where from, and what its arrays have to be."""

    name: str
    summary: str
    #: Field -> (shape, SHA-256 of the uint8 bytes in C order).
    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    #: In the order in which they are tried.
    sources: tuple[Source, ...]

    def check(self, source: str, arrays: Arrays) -> None:
        """Raises: UserError if these are not exactly the arrays of this data set."""
        for field, (shape, digest) in self.arrays.items():
            array = arrays[field]
            if array.dtype != np.uint8 or array.shape != shape:
                found = f"{array.dtype}{list(array.shape)}, not uint8{list(shape)}"
            elif hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() != digest:
                found = f"other bytes (mean {array.mean():.4f})"
            else:
                continue
            raise UserError(f"{source}: {field} is not that of {self.name}: {found}")
