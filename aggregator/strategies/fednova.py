"""FedNova. Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in
Heterogeneous Federated Optimization, arXiv 2007.07481, section 4::

    x <- x - tau_eff sum_i p_i eta d_i,   d_i = G_i a_i / ||a_i||_1,   p_i = n_i / n

over the clients i of the buffer, n_i the examples of client i. What a client sends is
Delta_i = -eta G_i a_i, and ||a_i||_1 with it (``fednova/norm``: what its local solver, of however
many steps, makes of its gradients' weights), so that the step is

    x <- x + tau_eff sum_i p_i Delta_i / ||a_i||_1,   tau_eff = sum_i p_i ||a_i||_1

The paper leaves tau_eff free. With this one, which for plain SGD is the mean number of local steps,
clients that all do the same give FedAvg, whatever their solver. (The authors' program takes
sum_i p_i tau_i with a proximal term.) Values that are no parameters are averaged with p_i.
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
    count,
    is_non_trainable,
    mean_of,
    next_version,
    with_model,
)
from fluffle.schemas import ClientUpdate, Experiment, Tensors
from fluffle.schemas.algorithms import Asks

_NORM = "fednova/norm"


@dataclass(frozen=True, slots=True)
class FedNova:
    """The mean of the deltas per unit of local work, times the mean of the work."""

    sends: ClassVar[Literal["delta"]] = "delta"
    asks: ClassVar[Asks] = "normaliser"

    def init(self, weights: Tensors) -> State:
        """The model alone."""
        return with_model(weights)

    def broadcast(self, state: State) -> Tensors:
        """Nothing but the model."""
        return {}

    def wants(self, model: Tensors) -> Tensors:
        """||a_i||_1"""
        return {_NORM: np.array(1.0)}

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += n_i Delta_i / ||a_i||_1;  work += n_i ||a_i||_1"""
        # A single step of any of these solvers has a norm of 1 or more.
        norm = max(1.0, float(update.tensors[_NORM].item()))
        n_i = update.examples
        count(state, "work", n_i * norm)
        return add_to_buffer(state, n_i / norm, update.tensors, value_weight=n_i)

    def step(self, state: State) -> State:
        """x <- x + tau_eff / n sum,  tau_eff = work / n"""
        n = buffered(state, "weight")
        tau_eff = buffered(state, "work") / n

        def formula(key: str, x: Sum, total: Sum) -> Sum:
            return mean_of(state, x, total) if is_non_trainable(key) else x + tau_eff / n * total

        return next_version(state, formula)


class FedNovaParameters(Parameters):
    """The mean of the deltas per unit of local work, times the mean of the work."""

    #: Names the strategy.
    strategy: Literal["fednova"] = "fednova"

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError for a local optimizer whose work it cannot measure."""
        if experiment.training.optimizer.lower() != "sgd":
            raise ValueError(
                "fednova knows what SGD makes of its gradients (momentum, nesterov and "
                "proximal_mu included), and no other optimizer: training.optimizer = 'sgd'"
            )

    def make(self, experiment: Experiment) -> FedNova:
        """FedNova, which takes nothing."""
        return FedNova()
