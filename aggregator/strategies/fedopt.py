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
from fluffle.aggregator.strategies.optimizers import (
    Adaptive,
    Beta,
    Momentum,
    SecondMoment,
    ServerOptimizer,
    adagrad,
    adam,
    yogi,
)
from fluffle.aggregator.strategies.staleness import Staleness, StalenessParameters, constant
from fluffle.schemas import ClientUpdate, Experiment, Tensors
from fluffle.schemas.table import Positive


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


class WeightedParameters(StalenessParameters):
    """What strategies take that may weigh updates by examples."""

    private: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    #: Weigh updates by examples, or all the same.
    weighting: Literal["examples", "uniform"] = "examples"

    def check(self, experiment: Experiment) -> None:
        """Raises: ValueError for ``[privacy]`` where a weight may be over one."""
        if experiment.privacy is not None and self.weighting != "uniform":
            raise ValueError("privacy needs aggregation.weighting = 'uniform'")


class FedAvgMParameters(WeightedParameters):
    """The server goes along the momentum of the mean deltas."""

    #: Names the strategy.
    strategy: Literal["fedavgm"] = "fedavgm"
    #: The server's learning rate (eta).
    server_learning_rate: Positive = 1.0
    #: How much of the momentum stays (beta).
    server_beta_1: Beta = 0.9

    def make(self, experiment: Experiment) -> FedOpt:
        """FedOpt with momentum."""
        optimizer = Momentum(self.server_learning_rate, self.server_beta_1)
        return FedOpt(optimizer, self.weighting, self.s)


class FedAdagradParameters(WeightedParameters):
    """The server's steps shrink with the sum of the squares of the mean deltas."""

    #: Names the strategy.
    strategy: Literal["fedadagrad"] = "fedadagrad"
    #: The server's learning rate (eta).
    server_learning_rate: Positive = 0.1
    #: How much of the first moment stays (beta_1).
    server_beta_1: Beta = 0.0
    #: The degree of adaptivity (tau).
    server_tau: Positive = 1e-3

    def make(self, experiment: Experiment) -> FedOpt:
        """FedOpt with Adagrad, which knows no beta_2."""
        optimizer = Adaptive(
            adagrad, self.server_learning_rate, self.server_beta_1, 0.0, self.server_tau
        )
        return FedOpt(optimizer, self.weighting, self.s)


class _AdaptiveParameters(WeightedParameters):
    #: The server's learning rate (eta).
    server_learning_rate: Positive = 0.01
    #: How much of the first moment stays (beta_1).
    server_beta_1: Beta = 0.9
    #: How much of the second moment stays (beta_2).
    server_beta_2: Beta = 0.99
    #: The degree of adaptivity (tau).
    server_tau: Positive = 1e-3

    def _with(self, second_moment: SecondMoment) -> FedOpt:
        eta, beta_1, beta_2 = self.server_learning_rate, self.server_beta_1, self.server_beta_2
        optimizer = Adaptive(second_moment, eta, beta_1, beta_2, self.server_tau)
        return FedOpt(optimizer, self.weighting, self.s)


class FedAdamParameters(_AdaptiveParameters):
    """The server's steps shrink with the running mean of the squares of the mean deltas."""

    #: Names the strategy.
    strategy: Literal["fedadam"] = "fedadam"

    def make(self, experiment: Experiment) -> FedOpt:
        """FedOpt with Adam."""
        return self._with(adam)


class FedYogiParameters(_AdaptiveParameters):
    """As FedAdam, with a second moment that changes more slowly."""

    #: Names the strategy.
    strategy: Literal["fedyogi"] = "fedyogi"

    def make(self, experiment: Experiment) -> FedOpt:
        """FedOpt with Yogi."""
        return self._with(yogi)
