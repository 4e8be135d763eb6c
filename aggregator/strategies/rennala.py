"""Rennala. Tyurin, Richtárik: Optimal Time Complexities of Parallel Stochastic Optimization Methods
Under a Fixed Computation Model, arXiv 2305.12387, Method 4::

    collect:  if k' = k:  g <- g + grad / S;  s <- s + 1    until s = S; what is older is ignored
    step:     x_{k+1} <- x_k + eta (1/S) sum_i Delta_i

k' is the version that an update was trained from, and S ``aggregation.quorum``: a batch of fixed
size from whoever is fast, each of the newest model. The paper's step -gamma grad is here what a
client's local training made of the model, Delta. What is ignored is rejected as ``too_stale``
before it gets here (``staleness_limit`` is 0). A deadline never steps with less than S. Values that
are no parameters (batch-norm statistics) are averaged. The paper's workers end what they are at;
with ``participation.stop_stale`` they need not, where it would be ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fluffle.aggregator.strategies.base import Parameters
from fluffle.aggregator.strategies.fedbuff import FedBuff
from fluffle.aggregator.strategies.optimizers import Sgd
from fluffle.aggregator.strategies.staleness import constant
from fluffle.schemas import Experiment
from fluffle.schemas.table import Positive


@dataclass(frozen=True, slots=True)
class Rennala(FedBuff):
    """A step along the mean of S deltas of the newest model."""


class RennalaParameters(Parameters):
    """A step along the mean of so many fresh deltas; stale ones are ignored."""

    private: ClassVar[bool] = True

    #: Names the strategy.
    strategy: Literal["rennala"] = "rennala"
    #: The server's learning rate (eta).
    server_learning_rate: Positive = 1.0

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError where stale updates shall count."""
        if self.max_staleness:
            raise ValueError("rennala counts no stale updates: remove aggregation.max_staleness")

    def least_updates(self, quorum: int) -> int:
        """S"""
        return quorum

    @property
    def staleness_limit(self) -> int | None:
        """0"""
        return 0

    def make(self, experiment: Experiment) -> Rennala:
        """Rennala; S is kept by the quorum, freshness by ``staleness_limit``."""
        return Rennala(Sgd(self.server_learning_rate), constant)
