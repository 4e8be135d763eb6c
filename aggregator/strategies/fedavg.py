"""FedAvg. McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of
Deep Networks from Decentralized Data, arXiv 1602.05629, Algorithm 1::

    w_{t+1} <- sum_k (n_k / n) w_k^{t+1},   n = sum_k n_k

over the clients k of the buffer, n_k the examples that client k trained on. The paper knows no
staleness; where updates may be stale, n_k may be scaled by s(tau), and ``max_staleness`` bounds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fluffle.aggregator.strategies.base import State, Strategy
from fluffle.aggregator.strategies.fedopt import FedOpt, WeightedParameters
from fluffle.aggregator.strategies.operations import (
    add_to_buffer,
    mean_of,
    next_version,
    with_model,
)
from fluffle.aggregator.strategies.optimizers import Sgd
from fluffle.aggregator.strategies.staleness import Staleness, constant
from fluffle.schemas import ClientUpdate, Experiment, Tensors


@dataclass(frozen=True, slots=True)
class FedAvg:
    """The mean of the clients' weights, by examples or uniform."""

    weighting: Literal["examples", "uniform"]
    s: Staleness = constant

    sends: ClassVar[Literal["weights"]] = "weights"

    def init(self, weights: Tensors) -> State:
        """The model alone."""
        return with_model(weights)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += n_k s(tau) w_k"""
        n_k = update.examples if self.weighting == "examples" else 1
        return add_to_buffer(state, n_k * self.s(staleness), update.tensors)

    def step(self, state: State) -> State:
        """w <- sum / n"""
        return next_version(state, lambda key, w, total: mean_of(state, w, total))


class FedAvgParameters(WeightedParameters):
    """The mean of the clients' weights."""

    #: Names the strategy.
    strategy: Literal["fedavg"] = "fedavg"

    def make(self, experiment: Experiment) -> Strategy:
        """The mean of the weights; of deltas, where something is done to them."""
        if experiment.update or experiment.privacy:
            # The mean of w + delta_k is w + the mean of delta_k.
            return FedOpt(Sgd(1.0), self.weighting, self.s)
        return FedAvg(self.weighting, self.s)
