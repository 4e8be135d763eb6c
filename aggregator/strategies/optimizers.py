"""Server optimizers: what the server makes of the buffer's mean delta, for ``trainable`` tensors.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization,
arXiv 2003.00295v5, Algorithm 2, with Delta_t the mean of the deltas::

    m_t <- beta_1 m_{t-1} + (1 - beta_1) Delta_t
    v_t <- v_{t-1} + Delta_t^2                                              Adagrad
    v_t <- v_{t-1} - (1 - beta_2) Delta_t^2 sign(v_{t-1} - Delta_t^2)       Yogi
    v_t <- beta_2 v_{t-1} + (1 - beta_2) Delta_t^2                          Adam
    x_{t+1} <- x_t + eta m_t / (sqrt(v_t) + tau)

from m = 0 and v = tau^2 (the paper asks for v_{-1} >= tau^2), without a correction of the bias. The
momentum is that of Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification, arXiv 1909.06335, section 4.3 (eta is 1 there)::

    m_t <- beta m_{t-1} + Delta_t;   x_{t+1} <- x_t + eta m_t

An optimizer works coordinate by coordinate, and may be handed any part of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field

from fluffle.aggregator.strategies.fold import Sum
from fluffle.aggregator.strategies.staleness import StalenessParameters
from fluffle.schemas.table import OnlyWith, Positive

#: What an optimizer keeps of each coordinate, by name.
Slots = Mapping[str, Sum]


class ServerOptimizer(Protocol):
    """One step of the model along an aggregated delta."""

    def start(self) -> Mapping[str, float]:
        """What it keeps between versions, and the value at version 0."""
        ...

    def apply(self, x: Sum, delta: Sum, slots: Slots) -> tuple[Sum, Slots]:
        """The model's next values, and what to keep; the arguments stay as they are."""
        ...


@dataclass(frozen=True, slots=True)
class Sgd:
    """x <- x + eta Delta"""

    learning_rate: float

    def start(self) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def apply(self, x: Sum, delta: Sum, slots: Slots) -> tuple[Sum, Slots]:
        """A plain step."""
        return x + self.learning_rate * delta, {}


@dataclass(frozen=True, slots=True)
class Momentum:
    """m <- beta m + Delta;  x <- x + eta m"""

    learning_rate: float
    beta: float

    def start(self) -> Mapping[str, float]:
        """The momentum."""
        return {"m": 0.0}

    def apply(self, x: Sum, delta: Sum, slots: Slots) -> tuple[Sum, Slots]:
        """A step along the momentum."""
        m = self.beta * slots["m"] + delta
        return x + self.learning_rate * m, {"m": m}


SecondMoment = Callable[[Sum, Sum, float], Sum]


def adagrad(v: Sum, squared: Sum, beta_2: float) -> Sum:
    """v <- v + Delta^2"""
    return v + squared


def yogi(v: Sum, squared: Sum, beta_2: float) -> Sum:
    """v <- v - (1 - beta_2) Delta^2 sign(v - Delta^2)"""
    moved: Sum = v - (1 - beta_2) * squared * np.sign(v - squared)
    return moved


def adam(v: Sum, squared: Sum, beta_2: float) -> Sum:
    """v <- beta_2 v + (1 - beta_2) Delta^2"""
    return beta_2 * v + (1 - beta_2) * squared


@dataclass(frozen=True, slots=True)
class Adaptive:
    """m <- beta_1 m + (1 - beta_1) Delta;  x <- x + eta m / (sqrt(v) + tau)"""

    second_moment: SecondMoment
    learning_rate: float
    beta_1: float
    beta_2: float
    tau: float

    def start(self) -> Mapping[str, float]:
        """The first and the second moment."""
        return {"m": 0.0, "v": self.tau**2}

    def apply(self, x: Sum, delta: Sum, slots: Slots) -> tuple[Sum, Slots]:
        """A step with a length of its own in every coordinate."""
        m = self.beta_1 * slots["m"] + (1 - self.beta_1) * delta
        v = self.second_moment(slots["v"], np.square(delta), self.beta_2)
        return x + self.learning_rate * m / (np.sqrt(v) + self.tau), {"m": m, "v": v}


@dataclass(frozen=True, slots=True)
class Amsgrad:
    """v^ <- max(v^, v);  x <- x + eta m / (sqrt(v^) + epsilon), m and v as Adam's (FADAS)"""

    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float

    def start(self) -> Mapping[str, float]:
        """Both moments, and the largest second one."""
        return {"m": 0.0, "v": 0.0, "v_hat": 0.0}

    def apply(self, x: Sum, delta: Sum, kept: Slots) -> tuple[Sum, Slots]:
        """A step whose length in a coordinate never grows again."""
        m = self.beta_1 * kept["m"] + (1 - self.beta_1) * delta
        v = adam(kept["v"], np.square(delta), self.beta_2)
        v_hat = np.maximum(kept["v_hat"], v)
        moved = x + self.learning_rate * m / (np.sqrt(v_hat) + self.epsilon)
        return moved, {"m": m, "v": v, "v_hat": v_hat}


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerParameters(StalenessParameters):
    """What strategies take that hand the mean delta to a server optimizer of one's choice."""

    #: What the server makes of what was aggregated.
    server_optimizer: Literal["sgd", "momentum", "adagrad", "adam", "yogi"] = "sgd"
    #: The server's learning rate (eta). Default: sgd, momentum 1; adagrad 0.1; adam, yogi 0.01.
    server_learning_rate: Positive | None = None
    #: momentum: beta; adagrad, adam, yogi: beta_1. Default: 0.9, adagrad 0.
    server_beta_1: Annotated[
        Beta | None, OnlyWith("server_optimizer", ("momentum", "adagrad", "adam", "yogi"))
    ] = None
    #: adam, yogi: beta_2.
    server_beta_2: Annotated[Beta, OnlyWith("server_optimizer", ("adam", "yogi"))] = 0.99
    #: adagrad, adam, yogi: the degree of adaptivity (tau).
    server_tau: Annotated[Positive, OnlyWith("server_optimizer", ("adagrad", "adam", "yogi"))] = (
        1e-3
    )

    @property
    def optimizer(self) -> ServerOptimizer:
        """The optimizer that these keys describe."""
        eta, beta_1 = self.server_learning_rate, self.server_beta_1
        match self.server_optimizer:
            case "sgd":
                return Sgd(eta or 1.0)
            case "momentum":
                return Momentum(eta or 1.0, 0.9 if beta_1 is None else beta_1)
            case "adagrad":
                beta_2 = self.server_beta_2
                return Adaptive(adagrad, eta or 0.1, beta_1 or 0.0, beta_2, self.server_tau)
            case "adam" | "yogi" as name:
                second_moment = adam if name == "adam" else yogi
                beta_1 = 0.9 if beta_1 is None else beta_1
                return Adaptive(
                    second_moment, eta or 0.01, beta_1, self.server_beta_2, self.server_tau
                )
