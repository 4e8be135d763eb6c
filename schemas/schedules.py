"""Schedules of the clients' learning rate: over local steps, or over versions.

At t (steps or versions before this one) the rate is ``training.learning_rate`` times, after a
linear warm-up of ``warmup``, which goes (t + 1) / warmup::

    cosine     floor + (1 - floor) (1 + cos(pi min(1, (t - warmup) / over))) / 2
    step       factor^floor((t - warmup) / every)
    constant   1
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from fluffle.schemas.table import Fraction, Table


class _Schedule(Table):
    #: The rate grows linearly over so many steps or versions at first.
    warmup: int = Field(0, ge=0, le=2**31)

    def at(self, t: int) -> float:
        """What the learning rate is multiplied by."""
        if t < self.warmup:
            return (t + 1) / self.warmup
        return self._after(t - self.warmup)

    def _after(self, t: int) -> float:
        return 1.0


class Constant(_Schedule):
    """Warm-up alone."""

    #: Names the schedule.
    kind: Literal["constant"]


class Cosine(_Schedule):
    """Half a cosine from the full rate to a floor (Loshchilov and Hutter, arXiv 1608.03983)."""

    #: Names the schedule.
    kind: Literal["cosine"]
    #: After so many steps or versions it is at its floor, and stays there.
    over: int = Field(ge=1, le=2**31)
    #: The share of the rate at which it ends.
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0

    def _after(self, t: int) -> float:
        cosine = math.cos(math.pi * min(1.0, t / self.over))
        return self.floor + (1 - self.floor) * (1 + cosine) / 2


class Step(_Schedule):
    """A factor every so many steps or versions."""

    #: Names the schedule.
    kind: Literal["step"]
    #: How many of them one rate holds for.
    every: int = Field(ge=1, le=2**31)
    #: What it is multiplied by then.
    factor: Fraction = 0.1

    def _after(self, t: int) -> float:
        return float(self.factor ** (t // self.every))


Schedule = Annotated[Constant | Cosine | Step, Field(discriminator="kind")]
