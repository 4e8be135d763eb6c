"""CA2FL. Wang, Cao, Wu, Chen, Chen: Tackling the Data Heterogeneity in Asynchronous Federated
Learning with Cached Update Calibration, ICLR 2024 (openreview.net/forum?id=4aywmeb97I),
Algorithm 2, for the clients S_t of the buffer, of N clients in all::

    v_t       <- h_t + (1/|S_t|) sum_{i in S_t} (Delta_i - h_t^i)
    x_{t+1}   <- x_t + eta v_t
    h_{t+1}^i <- Delta_i for i in S_t, h_t^i for the others
    h_{t+1}   <- (1/N) sum_i h_{t+1}^i

from h = 0: the server keeps every client's last delta, and those who are not in the buffer speak
through theirs. Of a client that is in a buffer twice the later delta is kept, and both are compared
with the h_t^i of before. Values that are no parameters (batch-norm statistics) are averaged. s(tau)
scales Delta_i - h_t^i of stale updates.

Memory: N models, in the dtype of the updates, and as much disk. ``max_cache_bytes`` bounds it. A
client's ``cache/…`` arrays are never changed, only replaced: the ledger writes those that are new.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fluffle.aggregator.strategies.base import State
from fluffle.aggregator.strategies.fold import Sum, add_scaled
from fluffle.aggregator.strategies.operations import (
    add_to_buffer,
    add_to_sum,
    buffered,
    is_non_trainable,
    server_step,
    sum_of,
    with_model,
)
from fluffle.aggregator.strategies.optimizers import OptimizerParameters, ServerOptimizer
from fluffle.aggregator.strategies.staleness import Staleness, constant
from fluffle.schemas import ClientUpdate, Experiment, Tensors, UserError
from fluffle.schemas.sizes import MB, human_bytes
from fluffle.schemas.table import Positive

_MEAN, _CACHE, _NEW = "server/h/", "cache/", "buffer/new_"


@dataclass(frozen=True, slots=True)
class Ca2fl:
    """A server step along the mean of all clients' last deltas, corrected by those that came."""

    optimizer: ServerOptimizer
    #: N
    clients: int
    max_cache_bytes: int
    s: Staleness = constant

    sends: ClassVar[Literal["delta"]] = "delta"

    def init(self, weights: Tensors) -> State:
        """The model, and h = 0. Raises: UserError where the cache could outgrow its bound."""
        parameters = {key: array for key, array in weights.items() if not is_non_trainable(key)}
        needed = self.clients * sum(array.nbytes for array in parameters.values())
        if needed > self.max_cache_bytes:
            raise UserError(
                f"ca2fl keeps the last delta of each of {self.clients} clients: "
                f"{human_bytes(needed)}, over aggregation.max_cache_mb = "
                f"{self.max_cache_bytes / MB:g}: raise it if there is as much memory and disk, or "
                "choose fewer clients or another strategy"
            )
        zeros: State = {_MEAN + key: np.zeros(array.shape) for key, array in parameters.items()}
        return {**with_model(weights, self.optimizer), **zeros}

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += s(tau) (Delta_i - h_i)"""
        s, entry = self.s(staleness), entry_of(update.client)
        state = add_to_buffer(state, s, update.tensors)
        for key, delta in update.tensors.items():
            if not is_non_trainable(key):
                if (cached := state.get(f"{_CACHE}{entry}/{key}")) is not None:
                    add_to_sum(state, key, -s, cached)
                kept = delta.copy()  # a view would keep the whole message
                kept.flags.writeable = False
                state[f"{_NEW}{entry}/{key}"] = kept
        return state

    def step(self, state: State) -> State:
        """x <- ServerOpt(x, h + sum / |S|);  h <- h + (1/N) sum_{i in S} (Delta_i - h_i)"""
        k = buffered(state, "updates")

        def calibrated(key: str, part: slice) -> Sum:
            h = np.asarray(state[_MEAN + key], np.float64).reshape(-1)
            return h[part] + sum_of(state, key, part) / k

        following = server_step(state, self.optimizer, calibrated)
        following |= {key: array for key, array in state.items() if key.startswith(_CACHE)}
        means = {key: np.array(a, np.float64) for key, a in state.items() if key.startswith(_MEAN)}
        for name in sorted(key for key in state if key.startswith(_NEW)):
            entry, _, key = name.removeprefix(_NEW).partition("/")
            add_scaled(means[_MEAN + key], 1 / self.clients, state[name])
            if (cached := state.get(f"{_CACHE}{entry}/{key}")) is not None:
                add_scaled(means[_MEAN + key], -1 / self.clients, cached)
            following[f"{_CACHE}{entry}/{key}"] = state[name]
        return {**following, **means}


class Ca2flParameters(OptimizerParameters):
    """Every client's last delta counts, whether it is in the buffer or not."""

    may_change: ClassVar[tuple[str, ...]] = ("max_cache_mb",)

    #: Names the strategy.
    strategy: Literal["ca2fl"] = "ca2fl"
    #: Refuse to start where all clients' last deltas would take more.
    max_cache_mb: Positive = 1000.0

    def make(self, experiment: Experiment) -> Ca2fl:
        """CA2FL for all clients of the experiment, pooled and resident."""
        most = round(MB * self.max_cache_mb)
        return Ca2fl(self.optimizer, experiment.everybody, most, self.s)


def entry_of(client: str) -> str:
    """A client's part of a tensor's name, which may not hold every letter that an id may."""
    if client.isdecimal():
        return client
    return "x" + hashlib.sha256(client.encode()).hexdigest()[:16]
