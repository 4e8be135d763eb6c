"""Random search: settings drawn from ranges and lists (Bergstra and Bengio, JMLR 13, 2012).

Draw i is a function of the experiment's seed and i alone: more draws add to those that were made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluffle.schemas import UserError

#: Digits of a number that is drawn: folders and tables show them all.
_DIGITS = 4
#: So many times as many draws are made, where settings come up that there are already.
_TRIES = 50


@dataclass(frozen=True)
class Range:
    """Numbers between two, both included; whole ones where both are whole.

    log: evenly over their logarithms, as for learning rates. Raises: UserError.

    >>> Range(0.001, 0.1, log=True)
    Range(low=0.001, high=0.1, log=True)
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        """Raises: UserError where nothing lies between the two."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"a range goes from a number to a larger one: {self.low}..{self.high}")
        if self.log and self.low <= 0:
            raise UserError(f"a range by logarithms begins above 0: {self.low}..{self.high}")

    def draw(self, rng: np.random.Generator) -> float:
        """One of its numbers."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = (self.low - 0.5, self.high + 0.5) if whole else (self.low, self.high)
        if self.log:
            value = math.exp(rng.uniform(math.log(low), math.log(high)))
        else:
            value = rng.uniform(low, high)
        if whole:
            return min(max(round(value), int(self.low)), int(self.high))
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


def draws(grid: Mapping[str, Sequence[Any] | Range], count: int, seed: int) -> list[dict[str, Any]]:
    """So many settings that differ, each key from its range or its list. Raises: UserError."""
    if count < 1:
        raise UserError(f"random={count}: one at least")
    if not grid:
        raise UserError("a random search needs keys to draw: give ranges, or lists of values")
    found: list[dict[str, Any]] = []
    for attempt in range(_TRIES * count):
        rng = np.random.default_rng([seed, attempt])
        drawn = {
            key: values.draw(rng) if isinstance(values, Range) else _one_of(key, values, rng)
            for key, values in grid.items()
        }
        if drawn not in found:
            found.append(drawn)
        if len(found) == count:
            return found
    raise UserError(f"these ranges have only {len(found)} settings or so, and {count} were wanted")


def _one_of(key: str, values: Sequence[Any], rng: np.random.Generator) -> Any:
    if isinstance(values, str | bytes) or not len(values):
        raise UserError(f"{key}: give a range, or a list of values")
    return values[int(rng.integers(len(values)))]
