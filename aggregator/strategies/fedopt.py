"""FedAvgM, FedAdagrad, FedAdam, FedYogi: FedAvg with a server optimizer. Reddi, Charles, Zaheer,
Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization, arXiv 2003.00295,
Algorithm 1::

    Delta_t = sum_k (n_k / n) Delta_k,   n = sum_k n_k
    x_{t+1} = ServerOpt(x_t, -Delta_t)

The optimizers and their papers are in ``optimizers``. Algorithm 2 writes the mean unweighted; the
paper's experiments weigh by examples, and so does the default here. The paper is synchronous; where
updates are stale, s(tau) scales their deltas and makes a step shorter, as in FedBuff.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fluffle.aggregator.strategies.base import State
from fluffle.aggregator.strategies.operations import (
    add_to_buffer,
    buffered,
    count,
    server_step,
    sum_of,
    with_model,
)
from fluffle.aggregator.strategies.optimizers import ServerOptimizer
from fluffle.aggregator.strategies.staleness import Staleness, constant
from fluffle.schemas import ClientUpdate, Tensors


@dataclass(frozen=True, slots=True)
class FedOpt:
    """A server optimizer on the mean delta, by examples or uniform."""

    optimizer: ServerOptimizer
    weighting: Literal["examples", "uniform"]
    s: Staleness = constant

    sends: ClassVar[Literal["delta"]] = "delta"

    def init(self, weights: Tensors) -> State:
        """The model, and what the optimizer keeps."""
        return with_model(weights, self.optimizer)

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += n_k s(tau) Delta_k;  n += n_k"""
        n_k = update.examples if self.weighting == "examples" else 1
        count(state, "n", n_k)
        return add_to_buffer(state, n_k * self.s(staleness), update.tensors)

    def step(self, state: State) -> State:
        """x <- ServerOpt(x, sum / n)"""
        n = buffered(state, "n") or 1.0
        return server_step(state, self.optimizer, lambda key, part: sum_of(state, key, part) / n)
