"""FedExP. Jhunjhunwala, Wang, Joshi: FedExP: Speeding Up Federated Averaging via Extrapolation,
arXiv 2301.09604, Algorithm 1 and equation 4::

    x <- x + eta_g mean,   mean = 1/M sum_i Delta_i
    eta_g = max(1, sum_i |Delta_i|^2 / (2 M (|mean|^2 + epsilon)))

over the M clients of the buffer, which weigh the same. The more the clients' deltas point in
different directions, the further the server goes along their mean. Norms are over all ``trainable``
tensors; values that are no parameters are averaged. The paper is synchronous, and evaluates the
mean of the last two models, where we evaluate the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fluffle.aggregator.strategies.base import Parameters, State, model_of
from fluffle.aggregator.strategies.fold import Sum, squared_norm
from fluffle.aggregator.strategies.operations import (
    add_to_buffer,
    buffered,
    count,
    is_non_trainable,
    server_step,
    sum_of,
    with_model,
)
from fluffle.aggregator.strategies.optimizers import Sgd
from fluffle.schemas import ClientUpdate, Experiment, Tensors
from fluffle.schemas.table import Positive


@dataclass(frozen=True, slots=True)
class FedExP:
    """A server step along the mean delta, as far as the deltas disagree."""

    epsilon: float

    sends: ClassVar[Literal["delta"]] = "delta"

    def init(self, weights: Tensors) -> State:
        """The model alone."""
        return with_model(weights)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += Delta_i;  squares += |Delta_i|^2"""
        deltas = (a for key, a in update.tensors.items() if not is_non_trainable(key))
        count(state, "squares", sum(map(squared_norm, deltas)))
        return add_to_buffer(state, 1.0, update.tensors)

    def step(self, state: State) -> State:
        """x <- x + eta_g sum / M"""
        m = buffered(state, "updates")
        of_mean = 0.0
        for key in model_of(state):
            if not is_non_trainable(key):
                of_mean += squared_norm(np.asarray(state[f"buffer/sum/{key}"])) / m**2
        eta_g = max(1.0, buffered(state, "squares") / (2 * m * (of_mean + self.epsilon)))

        def mean(key: str, part: slice) -> Sum:
            return sum_of(state, key, part) / m

        return server_step(state, Sgd(eta_g), mean)


class FedExPParameters(Parameters):
    """The mean of the deltas, extrapolated where they disagree."""

    #: Names the strategy.
    strategy: Literal["fedexp"] = "fedexp"
    #: Keeps the step finite where the deltas cancel out (epsilon).
    epsilon: Positive = 1e-3

    def make(self, experiment: Experiment) -> FedExP:
        """FedExP with this epsilon."""
        return FedExP(self.epsilon)
