"""FedAsync. Xie, Koyejo, Gupta: Asynchronous Federated Optimization, arXiv 1903.03934,
Algorithm 1::

    alpha_t <- alpha s(t - tau)
    x_t <- (1 - alpha_t) x_{t-1} + alpha_t x_new

Every update makes a version. alpha itself never changes: each alpha_t is made from it anew.
Values that are no parameters (batch-norm statistics) are mixed in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fluffle.aggregator.strategies.base import State
from fluffle.aggregator.strategies.operations import mix_into_buffer, next_version, with_model
from fluffle.aggregator.strategies.staleness import Staleness, StalenessParameters
from fluffle.schemas import ClientUpdate, Experiment, Tensors
from fluffle.schemas.table import Fraction


@dataclass(frozen=True, slots=True)
class FedAsync:
    """The model mixed with one client's weights."""

    mixing: float
    s: Staleness

    sends: ClassVar[Literal["weights"]] = "weights"

    def init(self, weights: Tensors) -> State:
        """The model alone."""
        return with_model(weights)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum <- (1 - alpha_t) x + alpha_t x_new"""
        alpha_t = self.mixing * self.s(staleness)
        return mix_into_buffer(state, alpha_t, update.tensors)

    def step(self, state: State) -> State:
        """x <- sum"""
        return next_version(state, lambda key, x, total: total)


class FedAsyncParameters(StalenessParameters):
    """The model is mixed with each update's weights."""

    one_by_one: ClassVar[bool] = True

    #: Names the strategy.
    strategy: Literal["fedasync"] = "fedasync"
    #: The weight of a stale update: constant 1; polynomial (1+tau)^-a; hinge 1/(a(tau-b)+1) past b.
    staleness: Literal["constant", "polynomial", "hinge"] = "polynomial"
    #: The mixing weight (alpha).
    mixing: Fraction = 0.6

    def make(self, experiment: Experiment) -> FedAsync:
        """FedAsync with the mixing weight and the staleness of these keys."""
        return FedAsync(self.mixing, self.s)
