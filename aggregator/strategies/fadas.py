"""FADAS. Wang, Wang, Lu, Chen: FADAS: Towards Federated Adaptive Asynchronous Optimization,
arXiv 2407.18365, Algorithms 1 and 2::

    Delta_t = 1/M sum_i Delta_i
    m_t = beta_1 m_{t-1} + (1 - beta_1) Delta_t
    v_t = beta_2 v_{t-1} + (1 - beta_2) Delta_t^2,   v^_t = max(v^_{t-1}, v_t)
    x_{t+1} = x_t + eta_t m_t / (sqrt(v^_t) + epsilon)

over the M updates of the buffer, fresh and stale ones the same. With a delay threshold tau_c
(Algorithm 2) eta_t = eta where the buffer's largest staleness is at most tau_c, else
min(eta, 1 / that staleness). Values that are no parameters are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fluffle.aggregator.strategies.base import Parameters, State
from fluffle.aggregator.strategies.operations import (
    add_to_buffer,
    buffered,
    server_step,
    sum_of,
    with_model,
)
from fluffle.aggregator.strategies.optimizers import Amsgrad, Beta
from fluffle.schemas import ClientUpdate, Experiment, Tensors
from fluffle.schemas.table import Positive

_STALEST = "buffer/stalest"


@dataclass(frozen=True, slots=True)
class Fadas:
    """AMSGrad on the mean of the buffer, more careful where the buffer is stale."""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    #: tau_c; None: every delay is taken as it is.
    delay_threshold: int | None

    sends: ClassVar[Literal["delta"]] = "delta"

    def init(self, weights: Tensors) -> State:
        """The model, and what AMSGrad keeps."""
        return with_model(weights, self._optimizer(self.learning_rate))

    def accept(self, state: State, update: ClientUpdate, staleness: int) -> State:
        """sum += Delta_i;  stalest = max(stalest, tau_i)"""
        before = float(state[_STALEST].item()) if _STALEST in state else 0.0
        state[_STALEST] = np.array(max(before, float(staleness)))
        return add_to_buffer(state, 1.0, update.tensors)

    def step(self, state: State) -> State:
        """x <- AMSGrad(x, sum / M)"""
        m, stalest = buffered(state, "updates"), buffered(state, "stalest")
        rate = self.learning_rate
        if self.delay_threshold is not None and stalest > self.delay_threshold:
            rate = min(rate, 1 / stalest)
        optimizer = self._optimizer(rate)
        return server_step(state, optimizer, lambda key, part: sum_of(state, key, part) / m)

    def _optimizer(self, rate: float) -> Amsgrad:
        return Amsgrad(rate, self.beta_1, self.beta_2, self.epsilon)


class FadasParameters(Parameters):
    """AMSGrad on the mean of the buffered deltas, with a rate that may depend on the delay."""

    #: Names the strategy.
    strategy: Literal["fadas"] = "fadas"
    #: The server's learning rate (eta).
    server_learning_rate: Positive = 0.01
    #: How much of the first moment stays (beta_1).
    server_beta_1: Beta = 0.9
    #: How much of the second moment stays (beta_2).
    server_beta_2: Beta = 0.99
    #: Keeps steps finite (epsilon).
    epsilon: Positive = 1e-8
    #: Buffers staler than this have a smaller rate (tau_c). Default: none has.
    delay_threshold: int | None = None

    def make(self, experiment: Experiment) -> Fadas:
        """FADAS; with a delay threshold it is the paper's delay-adaptive one."""
        return Fadas(
            self.server_learning_rate,
            self.server_beta_1,
            self.server_beta_2,
            self.epsilon,
            self.delay_threshold,
        )
