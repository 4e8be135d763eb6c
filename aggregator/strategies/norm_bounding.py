"""Norm bounding. Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?,
arXiv 1911.07963, section 4, for the n updates of the buffer::

    Delta = (1/n) sum_i Delta_i / max(1, |Delta_i| / M)
    x <- ServerOpt(x, Delta)

|Delta_i| is the Euclidean norm over all ``trainable`` tensors: no update pulls the model further
than M / n. Examples count for nothing: a bad client may claim any number. Values that are no
parameters (batch-norm statistics) are averaged, and nothing bounds them: for models that have such,
``median`` is safer. One sum, as for FedBuff. s(tau) scales the deltas of stale updates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from fluffle.aggregator.strategies.base import State
from fluffle.aggregator.strategies.fold import squared_norm
from fluffle.aggregator.strategies.operations import (
    add_to_buffer,
    buffered,
    is_non_trainable,
    server_step,
    sum_of,
    with_model,
)
from fluffle.aggregator.strategies.optimizers import OptimizerParameters, ServerOptimizer
from fluffle.aggregator.strategies.staleness import Staleness, constant
from fluffle.schemas import ClientUpdate, Experiment, Tensors
from fluffle.schemas.table import Positive


@dataclass(frozen=True, slots=True)
class NormBounding:
    """The mean of deltas that are cut to length ``bound`` (M)."""

    optimizer: ServerOptimizer
    bound: float
    s: Staleness = constant

    sends: ClassVar[Literal["delta"]] = "delta"

    def init(self, weights: Tensors) -> State:
        """The model, and what the optimizer keeps."""
        return with_model(weights, self.optimizer)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += s(tau) Delta / max(1, |Delta| / M)"""
        deltas = (array for key, array in update.tensors.items() if not is_non_trainable(key))
        norm = math.sqrt(sum(map(squared_norm, deltas)))
        s = self.s(staleness)
        return add_to_buffer(state, s / max(1.0, norm / self.bound), update.tensors, value_weight=s)

    def step(self, state: State) -> State:
        """x <- ServerOpt(x, sum / n)"""
        n = buffered(state, "updates")
        return server_step(state, self.optimizer, lambda key, part: sum_of(state, key, part) / n)


class NormBoundingParameters(OptimizerParameters):
    """The mean of deltas, long ones cut."""

    #: Names the strategy.
    strategy: Literal["norm-bounding"] = "norm-bounding"
    #: Deltas longer than this are shortened to it (M). It has to be given.
    norm_bound: Positive | None = None

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError without M."""
        if self.norm_bound is None:
            raise ValueError("norm-bounding needs aggregation.norm_bound (M)")

    def make(self, experiment: Experiment) -> NormBounding:
        """Norm bounding with the optimizer and the staleness of these keys."""
        assert self.norm_bound is not None, "check asks for it"
        return NormBounding(self.optimizer, self.norm_bound, self.s)
