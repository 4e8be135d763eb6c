"""FedBuff. Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered
Asynchronous Aggregation, arXiv 2106.06639, Algorithm 1, with the staleness of section 4::

    w_{t+1} <- w_t + eta_g (1/K) sum_i s(tau_i) Delta_i,   s(tau) = 1 / sqrt(1 + tau)

Delta_i = local - base, the base being the version that client i trained from (the paper writes
base - local, and subtracts). K is the number of updates in the buffer: the quorum, or what had
come when the deadline closed it. It is not the sum of the s(tau): stale updates make a step
shorter. Values that are no parameters (batch-norm statistics) are averaged with weights s(tau).

Another server optimizer may take the place of the plain step with eta_g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fluffle.aggregator.strategies.base import State
from fluffle.aggregator.strategies.operations import (
    add_to_buffer,
    buffered,
    server_step,
    sum_of,
    with_model,
)
from fluffle.aggregator.strategies.optimizers import OptimizerParameters, ServerOptimizer
from fluffle.aggregator.strategies.staleness import Staleness
from fluffle.schemas import ClientUpdate, Experiment, Tensors


@dataclass(frozen=True, slots=True)
class FedBuff:
    """A server step along the mean of the buffered deltas."""

    optimizer: ServerOptimizer
    s: Staleness

    sends: ClassVar[Literal["delta"]] = "delta"

    def init(self, weights: Tensors) -> State:
        """The model, and what the optimizer keeps."""
        return with_model(weights, self.optimizer)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += s(tau) Delta"""
        return add_to_buffer(state, self.s(staleness), update.tensors)

    def step(self, state: State) -> State:
        """w <- w + eta_g / K sum"""
        k = buffered(state, "updates")
        return server_step(state, self.optimizer, lambda key, part: sum_of(state, key, part) / k)


class FedBuffParameters(OptimizerParameters):
    """A server step along the mean of the buffered deltas, stale ones scaled."""

    private: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    #: Names the strategy.
    strategy: Literal["fedbuff"] = "fedbuff"
    #: The weight of a stale update: constant 1; polynomial (1+tau)^-a; hinge 1/(a(tau-b)+1) past b.
    staleness: Literal["constant", "polynomial", "hinge"] = "polynomial"

    def make(self, experiment: Experiment) -> FedBuff:
        """FedBuff with the optimizer and the staleness of these keys."""
        return FedBuff(self.optimizer, self.s)
