"""A mechanism: how the noise of one version depends on that of those before.

Denisov, McMahan, Rush, Smith, Thakurta: Improved Differential Privacy for SGD via Optimal Private
Linear Operators on Adaptive Streams, arXiv 2202.08312. With x_t the sum of the clipped updates of
version t, released is x + C^-1 z, z independent Gaussian: as private as C x + z, whose sensitivity
the accounting takes from who really took part when (``squared_sensitivity``). C is lower triangular
and Toeplitz here, so a mechanism is its first column c, and nothing that it gives can break the
accounting. C = I is the plain Gaussian mechanism.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Protocol

import numpy as np

from fluffle.schemas import UserError


class Mechanism(Protocol):
    """Makes the strategy matrix of a run.

    >>> class Halves:
    ...     def column(self, versions, separation): return [1.0, 0.5]
    """

    def column(self, versions: int, separation: int) -> Sequence[float]:
        """The first column of C: c_0 > 0, none below 0. Asked once, when a run begins.

        Its length, less one, is how many arrays of the model's size the aggregator keeps. Best is
        ``separation`` at most: then no two turns of a client overlap in it.
        """
        ...


def checked(column: Sequence[float], name: str) -> tuple[float, ...]:
    """The column with length 1: z means the same under every mechanism. Raises: UserError."""
    values = np.array(column, np.float64)
    if not (values.ndim == 1 and len(values) and np.isfinite(values).all()):
        raise UserError(f"the mechanism {name} gave no list of numbers")
    if values[0] <= 0 or values.min() < 0:
        raise UserError(f"the mechanism {name}: its first number has to be above 0, none below 0")
    return tuple(float(c) for c in values / sqrt(float(np.square(values).sum())))


class Sensitivity:
    """|C u|^2 at most, for a client whose update in version t is no longer than m_t, in units of
    the clipping norm: sum_ij m_i m_j <C_i, C_j>, which is exact where all its updates are alike.

    Needs the last versions of a client only, so it grows with clients and not with versions.
    """

    def __init__(self, column: Sequence[float]) -> None:
        c = np.array(column)
        #: <C_i, C_j> by |i - j|.
        self._inner = [float(c[: len(c) - lag] @ c[lag:]) for lag in range(len(c))]
        self._recent: dict[str, list[tuple[int, int]]] = {}
        self._squared: dict[str, float] = {}

    def add(self, client: str, version: int, times: int) -> float:
        """What it is for this client after a version in which it counts so many times."""
        near = [(v, m) for v, m in self._recent.get(client, []) if version - v < len(self._inner)]
        added = times * times * self._inner[0]
        added += sum(2 * times * m * self._inner[version - v] for v, m in near)
        self._recent[client] = [*near, (version, times)]
        self._squared[client] = self._squared.get(client, 0.0) + added
        return self._squared[client]
