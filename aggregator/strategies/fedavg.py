"""FedAvg. McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of
Deep Networks from Decentralized Data, arXiv 1602.05629, Algorithm 1::

    w_{t+1} <- sum_k (n_k / n) w_k^{t+1},   n = sum_k n_k

over the clients k of the buffer, n_k the examples that client k trained on. That is a cohort, where
all of them began at w_t, so that the mean of the weights is w_t and the mean of the deltas::

    w_{t+1} <- w_t + sum_k (n_k / n) s(tau_k) Delta_k,   Delta_k = w_k^{t+1} - w_{t - tau_k}

The paper knows no staleness. In concurrent mode clients began at models of several ages, whose
mean would take back what was learned since: there it is the second line, and so it is wherever
something is done to updates on the way, which is done to deltas.
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
from fluffle.schemas import ClientUpdate, Experiment, Tensors


@dataclass(frozen=True, slots=True)
class FedAvg:
    """The mean of the weights of clients that began at the same model, by examples or uniform."""

    weighting: Literal["examples", "uniform"]

    sends: ClassVar[Literal["weights"]] = "weights"

    def init(self, weights: Tensors) -> State:
        """The model alone."""
        return with_model(weights)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += n_k w_k"""
        n_k = update.examples if self.weighting == "examples" else 1
        return add_to_buffer(state, n_k, update.tensors)

    def step(self, state: State) -> State:
        """w <- sum / n"""
        return next_version(state, lambda key, w, total: mean_of(state, w, total))


class FedAvgParameters(WeightedParameters):
    """The model plus the mean of the clients' deltas."""

    #: Names the strategy.
    strategy: Literal["fedavg"] = "fedavg"

    def make(self, experiment: Experiment) -> Strategy:
        """A cohort's mean of the weights; else that of the deltas."""
        cohort = experiment.participation.mode == "cohort"
        on_the_way = experiment.update or experiment.privacy or experiment.secure_aggregation
        if cohort and not on_the_way:
            return FedAvg(self.weighting)
        return FedOpt(Sgd(1.0), self.weighting, self.s)
