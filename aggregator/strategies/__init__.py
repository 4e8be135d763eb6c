"""Strategies: how updates become the next version. Each opens with its paper and its equation."""

from __future__ import annotations

from aggregator.strategies.base import State, Strategy, model_of
from aggregator.strategies.fedasync import FedAsync
from aggregator.strategies.fedavg import FedAvg
from aggregator.strategies.fedbuff import FedBuff
from aggregator.strategies.fedopt import FedOpt
from aggregator.strategies.optimizers import optimizer_of
from aggregator.strategies.ringmaster import Ringmaster
from aggregator.strategies.staleness import staleness_of
from schemas import Experiment

__all__ = [
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedOpt",
    "Ringmaster",
    "State",
    "Strategy",
    "make_strategy",
    "model_of",
]

#: FedOpt under the names of its papers.
_FEDOPT = {
    "fedavgm": "momentum",
    "fedadagrad": "adagrad",
    "fedadam": "adam",
    "fedyogi": "yogi",
}


def make_strategy(experiment: Experiment) -> Strategy:
    """The strategy that an experiment's ``aggregation`` table asks for."""
    table = experiment.aggregation
    s = staleness_of(table)
    if table.strategy in _FEDOPT:
        return FedOpt(optimizer_of(table, _FEDOPT[table.strategy]), table.weighting, s)
    if table.strategy == "fedavg":
        return FedAvg(table.weighting, s)
    if table.strategy == "fedasync":
        return FedAsync(table.mixing, s)
    if table.strategy == "ringmaster":
        return Ringmaster(optimizer_of(table), s)
    return FedBuff(optimizer_of(table), s)
