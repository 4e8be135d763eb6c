"""SCAFFOLD. Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled
Averaging for Federated Learning, arXiv 1910.06378, Algorithm 1, lines 14 to 18, and equation 5::

    x <- x + eta_g / |S| sum_i Delta y_i
    c <- c + |S| / N (1 / |S| sum_i Delta c_i) = c + 1 / N sum_i Delta c_i

over the clients i of the buffer S, of N clients in all. c starts at zero and travels with the model
as the group ``control``; Delta c_i = c_i+ - c_i comes with the update as ``control`` too. c is kept
in float64, so that it stays the mean of all c_i. Clients weigh the same. The paper is synchronous:
where updates may be stale nothing is promised, and staleness changes no weight. Values that are no
parameters (batch-norm statistics) are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fluffle.aggregator.strategies.base import Parameters, State
from fluffle.aggregator.strategies.fold import Sum, add_scaled, cast_like, writable
from fluffle.aggregator.strategies.operations import (
    add_to_buffer,
    buffered,
    is_non_trainable,
    mean_of,
    next_version,
    with_model,
)
from fluffle.schemas import ClientUpdate, Experiment, Tensors, group
from fluffle.schemas.algorithms import Asks
from fluffle.schemas.table import Positive
from fluffle.schemas.tensors import named

_C, _SUM = "server/control", "buffer/control"


@dataclass(frozen=True, slots=True)
class Scaffold:
    """A server step along the mean of the deltas, and one of the control variate."""

    server_learning_rate: float
    #: N
    clients: int
    option: Literal["I", "II"]

    sends: ClassVar[Literal["delta"]] = "delta"

    @property
    def asks(self) -> Asks:
        """How clients renew their control variates."""
        return "control-variate-I" if self.option == "I" else "control-variate-II"

    def init(self, weights: Tensors) -> State:
        """The model, and c = 0."""
        zeros = [np.zeros(array.shape) for array in group("trainable", weights)]
        return {**with_model(weights), **named(_C, zeros)}

    def broadcast(self, state: State) -> Tensors:
        """c, in the dtypes of the model."""
        like = group("model/trainable", state)
        pairs = zip(group(_C, state), like, strict=True)
        return named("control", [cast_like(np.asarray(c, np.float64), w) for c, w in pairs])

    def wants(self, model: Tensors) -> Tensors:
        """Delta c_i"""
        return named("control", group("trainable", model))

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += Delta y_i;  sum of c += Delta c_i"""
        for i, change in enumerate(group("control", update.tensors)):
            stored = state.get(f"{_SUM}/{i}")
            total = np.zeros(change.shape) if stored is None else writable(stored)
            add_scaled(total, 1.0, change)
            state[f"{_SUM}/{i}"] = total
        return add_to_buffer(state, 1.0, update.tensors)

    def step(self, state: State) -> State:
        """x <- x + eta_g / |S| sum;  c <- c + sum of c / N"""
        rate = self.server_learning_rate / buffered(state, "updates")

        def formula(key: str, x: Sum, total: Sum) -> Sum:
            return mean_of(state, x, total) if is_non_trainable(key) else x + rate * total

        following = next_version(state, formula)
        pairs = zip(group(_C, state), group(_SUM, state), strict=True)
        added = [np.add(c, np.divide(total, self.clients)) for c, total in pairs]
        return {**following, **named(_C, added)}


class ScaffoldParameters(Parameters):
    """Clients' steps are corrected by how their data differ from all the data."""

    #: Names the strategy.
    strategy: Literal["scaffold"] = "scaffold"
    #: The server's learning rate (eta).
    server_learning_rate: Positive = 1.0
    #: Clients renew their control variate by option I (the gradient at the global model: one more
    #: pass over their data) or II (the path that they went, for nothing).
    control_option: Literal["I", "II"] = "II"

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError for resident clients, and for other local training than plain SGD."""
        if experiment.residents:
            raise ValueError(
                "scaffold's clients keep state from turn to turn, and participation.residents have "
                "no turns: choose another strategy"
            )
        training = experiment.training
        plain = training.optimizer.lower() == "sgd"
        if not plain or training.momentum or training.proximal_mu:
            raise ValueError(
                "scaffold corrects plain SGD: training.optimizer = 'sgd', without momentum and "
                "proximal_mu"
            )

    def make(self, experiment: Experiment) -> Scaffold:
        """SCAFFOLD for the experiment's clients."""
        return Scaffold(self.server_learning_rate, experiment.task.clients, self.control_option)
