"""Order statistics of a few rows of many numbers: sorting networks, in blocks that stay in cache.

``np.median`` over a stack partitions every column for itself. A network sorts the rows instead:
each comparator is a minimum and a maximum of two whole rows, which run at the speed of vector
instructions. Batcher, Sorting Networks and Their Applications, AFIPS 1968 (odd-even merge sort);
comparators whose result no wanted rank depends on are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas.tensors import Array

#: Numbers in the scratch, all rows together (1 MiB of float32), and the bounds of one row.
_SCRATCH, _SHORTEST, _LONGEST = 2**18, 2**12, 2**14


def block_length(rows: int) -> int:
    """How many columns to hand to a ``Sorter`` at once."""
    return min(_LONGEST, max(_SHORTEST, _SCRATCH // rows))


class Sorter:
    """Sorts columns of ``rows`` numbers as far as the ranks in ``wanted`` need it."""

    def __init__(self, rows: int, wanted: Iterable[int]) -> None:
        self._network = _pruned(rows, frozenset(wanted))
        self._rows = rows
        self._scratch: dict[np.dtype[Any], NDArray[Any]] = {}

    def __call__(self, rows: Sequence[Array]) -> list[NDArray[Any]]:
        """Row r of the result has the r-th smallest of each column, where r is wanted.

        ``rows`` have one length, at most ``block_length``. The result lies in a scratch that the
        next call overwrites.
        """
        dtype = np.result_type(np.float32, *(row.dtype for row in rows))
        if dtype not in self._scratch:
            self._scratch[dtype] = np.empty((self._rows + 1, block_length(self._rows)), dtype)
        lines: list[NDArray[Any]] = [line[: rows[0].size] for line in self._scratch[dtype]]
        for line, row in zip(lines, rows, strict=False):
            line[...] = row
        spare = lines.pop()
        for a, b, low, high in self._network:
            first, second = lines[a], lines[b]
            if low and high:
                np.minimum(first, second, out=spare)
                np.maximum(first, second, out=second)
                lines[a], spare = spare, first
            elif low:
                np.minimum(first, second, out=first)
            else:
                np.maximum(first, second, out=second)
        return lines


@lru_cache(maxsize=64)
def _pruned(rows: int, wanted: frozenset[int]) -> tuple[tuple[int, int, bool, bool], ...]:
    """(a, b, whether row a's minimum is needed, whether row b's maximum is)."""
    live, kept = set(wanted), []
    for a, b in reversed(list(_odd_even_merge_sort(rows))):
        if a in live or b in live:
            kept.append((a, b, a in live, b in live))
            live |= {a, b}
    return tuple(reversed(kept))


def _odd_even_merge_sort(rows: int) -> Iterator[tuple[int, int]]:
    """Comparators (a, b) that leave the smaller in a; Knuth, volume 3, algorithm 5.2.2 M."""
    merged = 1
    while merged < rows:
        distance = merged
        while distance:
            for start in range(distance % merged, rows - distance, 2 * distance):
                for a in range(start, min(start + distance, rows - distance)):
                    if a // (2 * merged) == (a + distance) // (2 * merged):
                        yield a, a + distance
            distance //= 2
        merged *= 2
