"""FedDyn. Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on
Dynamic Regularization, arXiv 2111.04263, Algorithm 1, the server's lines::

    h <- h - alpha / N sum_i (theta_i - theta)
    theta <- 1/|P| sum_i theta_i - h / alpha

over the clients i of the buffer P, of N in all. With Delta_i = theta_i - theta the second line is
theta + 1/|P| sum_i Delta_i - h / alpha. alpha travels with the model (``feddyn/alpha``), and
clients regularise with it (``fluffle.worker.training.algorithms.feddyn``). Clients weigh the same.
The paper is synchronous. Values that are no parameters are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fluffle.aggregator.strategies.base import Parameters, State
from fluffle.aggregator.strategies.fold import Sum
from fluffle.aggregator.strategies.operations import (
    add_to_buffer,
    buffered,
    is_non_trainable,
    mean_of,
    next_version,
    with_model,
)
from fluffle.schemas import ClientUpdate, Experiment, Tensors
from fluffle.schemas.algorithms import Asks
from fluffle.schemas.table import Positive

_H = "server/h/"


@dataclass(frozen=True, slots=True)
class FedDyn:
    """The mean of the clients' models, corrected by what they have moved in all."""

    alpha: float
    #: N
    clients: int

    sends: ClassVar[Literal["delta"]] = "delta"
    asks: ClassVar[Asks] = "feddyn"

    def init(self, weights: Tensors) -> State:
        """The model, and h = 0."""
        keys = [key for key in weights if not is_non_trainable(key)]
        return {**with_model(weights), **{_H + key: np.zeros(weights[key].shape) for key in keys}}

    def broadcast(self, state: State) -> Tensors:
        """alpha"""
        return {"feddyn/alpha": np.array(self.alpha)}

    def wants(self, model: Tensors) -> Tensors:
        """Nothing but the model's update."""
        return {}

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += Delta_i"""
        return add_to_buffer(state, 1.0, update.tensors)

    def step(self, state: State) -> State:
        """h <- h - alpha / N sum;  theta <- theta + sum / |P| - h / alpha"""
        p, following_h = buffered(state, "updates"), dict[str, Sum]()

        def formula(key: str, theta: Sum, total: Sum) -> Sum:
            if is_non_trainable(key):
                return mean_of(state, theta, total)
            h = np.asarray(state[_H + key], np.float64) - self.alpha / self.clients * total
            following_h[_H + key] = np.asarray(h)
            moved: Sum = theta + total / p - h / self.alpha
            return moved

        return {**next_version(state, formula), **following_h}


class FedDynParameters(Parameters):
    """The mean of the clients' models, whose losses are regularised by where they went before."""

    #: Names the strategy.
    strategy: Literal["feddyn"] = "feddyn"
    #: How strong the clients' regularisation is (alpha).
    alpha: Positive = 0.1

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError for resident clients, and for a proximal term."""
        if experiment.residents:
            raise ValueError(
                "feddyn's clients keep state from turn to turn, and participation.residents have "
                "no turns: choose another strategy"
            )
        if experiment.training.proximal_mu:
            raise ValueError("feddyn has a proximal term of its own: remove training.proximal_mu")

    def make(self, experiment: Experiment) -> FedDyn:
        """FedDyn among the experiment's pooled clients."""
        return FedDyn(self.alpha, experiment.task.clients)
