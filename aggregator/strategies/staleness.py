"""How much a stale update weighs: s(tau), with tau = current version - base version.

Xie, Koyejo, Gupta: Asynchronous Federated Optimization, arXiv 1903.03934, section 5.2::

    constant    s(tau) = 1
    polynomial  s(tau) = (1 + tau)^-a
    hinge       s(tau) = 1 if tau <= b, else 1 / (a (tau - b) + 1)

A fresh update (tau = 0) always weighs 1. FedBuff (arXiv 2106.06639) uses the polynomial, a = 1/2.
"""

from __future__ import annotations

from collections.abc import Callable

from fluffle.schemas.experiment import AggregationTable

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


def staleness_of(table: AggregationTable) -> Staleness:
    """The function that an experiment's ``aggregation`` table names.

    By default the polynomial where the paper has it, else none.
    """
    kind = table.staleness
    if kind is None and table.strategy in ("fedbuff", "fedasync"):
        kind = "polynomial"
    if kind == "polynomial":
        return polynomial(table.staleness_a)
    if kind == "hinge":
        return hinge(table.staleness_a, table.staleness_b)
    return constant
