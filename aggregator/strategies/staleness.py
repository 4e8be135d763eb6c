"""Weights of stale updates: s(tau), with tau = current version - base version.

Xie, Koyejo, Gupta: Asynchronous Federated Optimization, arXiv 1903.03934, section 5.2::

    constant    s(tau) = 1
    polynomial  s(tau) = (1 + tau)^-a
    hinge       s(tau) = 1 if tau <= b, else 1 / (a (tau - b) + 1)

A fresh update (tau = 0) always weighs 1. FedBuff (arXiv 2106.06639) uses the polynomial, a = 1/2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from fluffle.aggregator.strategies.base import Parameters
from fluffle.schemas.table import NonNegative, OnlyWith

Staleness = Callable[[int], float]


def constant(tau: int) -> float:
    """Stale or not: the same."""
    return 1.0


def polynomial(a: float) -> Staleness:
    """(1 + tau)^-a."""
    return lambda tau: float((1.0 + tau) ** -a)


def hinge(a: float, b: float) -> Staleness:
    """1 up to b versions, then falling hyperbolically."""
    return lambda tau: 1.0 if tau <= b else 1.0 / (a * (tau - b) + 1.0)


class StalenessParameters(Parameters):
    """What strategies take that may weigh stale updates less."""

    #: The weight of a stale update: constant 1; polynomial (1+tau)^-a; hinge 1/(a(tau-b)+1) past b.
    staleness: Literal["constant", "polynomial", "hinge"] = "constant"
    #: a of polynomial and hinge.
    staleness_a: Annotated[NonNegative, OnlyWith("staleness", ("polynomial", "hinge"))] = 0.5
    #: b of hinge: how many versions old an update may be at full weight.
    staleness_b: Annotated[NonNegative, OnlyWith("staleness", ("hinge",))] = 4.0

    @property
    def s(self) -> Staleness:
        """The function that these keys name."""
        if self.staleness == "polynomial":
            return polynomial(self.staleness_a)
        if self.staleness == "hinge":
            return hinge(self.staleness_a, self.staleness_b)
        return constant
