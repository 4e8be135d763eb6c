"""Strategies: how updates become the next version. Each opens with its paper and its equation."""

from __future__ import annotations

from pathlib import Path

from fluffle.aggregator.strategies.base import State, Strategy, model_of
from fluffle.aggregator.strategies.ca2fl import Ca2fl
from fluffle.aggregator.strategies.custom import custom_strategy
from fluffle.aggregator.strategies.fedasync import FedAsync
from fluffle.aggregator.strategies.fedavg import FedAvg
from fluffle.aggregator.strategies.fedbuff import FedBuff
from fluffle.aggregator.strategies.fednova import FedNova
from fluffle.aggregator.strategies.fedopt import FedOpt
from fluffle.aggregator.strategies.krum import Krum
from fluffle.aggregator.strategies.median import Median, TrimmedMean
from fluffle.aggregator.strategies.norm_bounding import NormBounding
from fluffle.aggregator.strategies.optimizers import optimizer_of
from fluffle.aggregator.strategies.private import Private
from fluffle.aggregator.strategies.ringmaster import Ringmaster
from fluffle.aggregator.strategies.scaffold import Scaffold
from fluffle.aggregator.strategies.staleness import staleness_of
from fluffle.schemas import Experiment, UserError
from fluffle.schemas.user_code import is_custom

__all__ = [
    "Ca2fl",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedNova",
    "FedOpt",
    "Krum",
    "Median",
    "NormBounding",
    "Private",
    "Ringmaster",
    "Scaffold",
    "State",
    "Strategy",
    "TrimmedMean",
    "make_strategy",
    "model_of",
    "protected",
]

#: FedOpt under the names of its papers.
_FEDOPT = {
    "fedavgm": "momentum",
    "fedadagrad": "adagrad",
    "fedadam": "adam",
    "fedyogi": "yogi",
}


def make_strategy(experiment: Experiment, code: Path | None = None) -> Strategy:
    """The strategy that an experiment's ``aggregation`` table asks for; ``[privacy]`` comes on top.

    code: the folder of a strategy from a file; by default the present one.
    Raises: UserError for one that cannot be loaded, or does not go with the rest.
    """
    strategy = _strategy_of(experiment, code or Path())
    if experiment.update and strategy.sends == "weights":
        raise UserError(
            f"[[update]] works on deltas, and {experiment.aggregation.strategy} wants weights: "
            "choose another aggregation.strategy, such as fedbuff"
        )
    return strategy


def protected(strategy: Strategy, experiment: Experiment, noise_key: str | None) -> Strategy:
    """The strategy with the experiment's ``[privacy]``, if it has one.

    noise_key: the run's secret, in hexadecimal digits.
    """
    table = experiment.privacy
    if table is None:
        return strategy
    assert noise_key is not None, "noise needs a secret"
    return Private(strategy, table.clip_norm, table.noise_multiplier, int(noise_key, 16))


def _strategy_of(experiment: Experiment, code: Path) -> Strategy:
    table = experiment.aggregation
    if is_custom(table.strategy):
        return custom_strategy(table.strategy, code, table.parameters or {})
    s = staleness_of(table)
    if table.strategy in _FEDOPT:
        return FedOpt(optimizer_of(table, _FEDOPT[table.strategy]), table.weighting, s)
    if table.strategy == "fedavg" and (experiment.update or experiment.privacy):
        # The mean of w + delta_k is w + the mean of delta_k.
        return FedOpt(optimizer_of(table, "sgd"), table.weighting, s)
    if table.strategy == "fedavg":
        return FedAvg(table.weighting, s)
    if table.strategy == "fednova":
        return FedNova()
    if table.strategy == "scaffold":
        rate, option = table.server_learning_rate or 1.0, table.control_option or "II"
        return Scaffold(rate, experiment.task.clients, option)
    if table.strategy == "fedasync":
        return FedAsync(table.mixing, s)
    optimizer = optimizer_of(table)
    if table.strategy == "ringmaster":
        return Ringmaster(optimizer, s)
    if table.strategy == "ca2fl":
        clients = experiment.task.clients + len(experiment.residents)
        return Ca2fl(optimizer, clients, round(1e6 * (table.max_cache_mb or 1000)), s)
    if table.strategy == "median":
        return Median(optimizer, s=s)
    if table.strategy == "trimmed-mean":
        return TrimmedMean(optimizer, 0.2 if table.trim is None else table.trim, s)
    if table.strategy in ("krum", "multi-krum"):
        m = 1 if table.strategy == "krum" else table.krum_selected
        return Krum(optimizer, experiment.byzantine_updates, m, s)
    if table.strategy == "norm-bounding":
        assert table.norm_bound is not None, "Experiment asks for it"
        return NormBounding(optimizer, table.norm_bound, s)
    return FedBuff(optimizer, s)
