"""Strategies: how updates become the next version. Each opens with its paper and its equation."""

from __future__ import annotations

from aggregator.strategies.base import State, Strategy, model_of
from aggregator.strategies.fedasync import FedAsync
from aggregator.strategies.fedavg import FedAvg
from aggregator.strategies.fedbuff import FedBuff
from aggregator.strategies.staleness import staleness_of
from schemas import Experiment

__all__ = ["FedAsync", "FedAvg", "FedBuff", "State", "Strategy", "make_strategy", "model_of"]


def make_strategy(experiment: Experiment) -> Strategy:
    """The strategy that an experiment's ``aggregation`` table asks for."""
    table = experiment.aggregation
    if table.strategy == "fedavg":
        return FedAvg(table.weighting)
    if table.strategy == "fedasync":
        return FedAsync(table.mixing, staleness_of(table))
    return FedBuff(table.server_learning_rate, staleness_of(table))
