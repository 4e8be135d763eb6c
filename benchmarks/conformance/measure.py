"""The same clients' results, aggregated by Fluffle, by Flower and by pfl-research.

Neither of the two is a dependency: install ``flwr`` and ``pfl`` beside Fluffle, in an environment
of their own. What is missing is said, and left out. README.md has the table.

    python benchmarks/conformance/measure.py
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.aggregator.strategies.base import State, model_of
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.schemas import ClientUpdate, Experiment, Run

Weights = list[NDArray[np.float64]]
#: A client's weights after training, and how many examples it has.
Result = tuple[Weights, int]
#: Round (1, 2, …) and the clients' results -> the next model.
Rounds = Callable[[int, list[Result]], Weights]

SHAPES = ((20, 10), (10,), ())
ROUNDS, CLIENTS = 6, 9
ETA, BETA_1, BETA_2, TAU = 0.03, 0.9, 0.99, 1e-3


def ours(aggregation: dict[str, Any], start: Weights, undo: Callable[..., float | None]) -> Rounds:
    """Fluffle's strategy. ``undo`` takes (round, state), may change what the server keeps, and
    gives a server learning rate for the round, or None.
    """
    state: State | None = None

    def one_round(number: int, results: list[Result]) -> Weights:
        nonlocal state
        if state is None:
            state = _strategy(aggregation).init(_named(start))
        rate = undo(number, state)
        changed = {} if rate is None else {"server_learning_rate": rate}
        strategy = _strategy({**aggregation, **changed})
        base = _listed(state)
        for turn, (weights, examples) in enumerate(results):
            sent = weights
            if strategy.sends == "delta":
                sent = [np.asarray(w - b) for w, b in zip(weights, base, strict=True)]
            state = strategy.accept(state, _update(sent, examples, turn), 0)
        state = strategy.step(state)
        return _listed(state)

    return one_round


def nothing(number: int, state: State) -> None:
    """Their equations are the same."""


def starts_at_zero(number: int, state: State) -> None:
    """Flower starts v at 0, where the paper has v >= tau^2."""
    if number == 1:
        for key in state:
            if key.startswith("server/v/"):
                state[key] = np.zeros_like(state[key])


def corrects_bias(number: int, state: State) -> float:
    """Flower's FedAdam corrects the bias by Kingma and Ba's learning rate, with round + 1."""
    starts_at_zero(number, state)
    t = number + 1.0
    return float(ETA * np.sqrt(1 - BETA_2**t) / (1 - BETA_1**t))


@dataclass
class Case:
    """One strategy here, and its like in Flower."""

    name: str
    aggregation: dict[str, Any]
    flower: str
    keywords: dict[str, Any] = field(default_factory=dict)
    #: What makes our equation theirs.
    undo: Callable[..., float | None] = nothing
    #: The same number of examples for all.
    even: bool = False


MOMENTS = {"server_learning_rate": ETA, "server_tau": TAU}
ADAPTIVE = {**MOMENTS, "server_beta_1": BETA_1, "server_beta_2": BETA_2}
CASES = (
    Case("FedAvg", {"strategy": "fedavg"}, "FedAvg"),
    Case(
        "FedAvgM",
        {"strategy": "fedavgm", "server_learning_rate": 0.7, "server_beta_1": 0.8},
        "FedAvgM",
        {"server_learning_rate": 0.7, "server_momentum": 0.8},
    ),
    Case(
        *("FedAdagrad", {"strategy": "fedadagrad", **MOMENTS}, "FedAdagrad"),
        {"eta": ETA, "tau": TAU},
        starts_at_zero,
    ),
    Case(
        *("FedAdam", {"strategy": "fedadam", **ADAPTIVE}, "FedAdam"),
        {"eta": ETA, "tau": TAU, "beta_1": BETA_1, "beta_2": BETA_2},
        corrects_bias,
    ),
    Case(
        *("FedYogi", {"strategy": "fedyogi", **ADAPTIVE}, "FedYogi"),
        {"eta": ETA, "tau": TAU, "beta_1": BETA_1, "beta_2": BETA_2},
        starts_at_zero,
    ),
    Case("median", {"strategy": "median"}, "FedMedian"),
    Case(
        *("trimmed mean", {"strategy": "trimmed-mean", "trim": 0.25}, "FedTrimmedAvg"),
        {"beta": 0.25},
    ),
    Case(
        *("Krum", {"strategy": "krum", "quorum": CLIENTS, "byzantine_updates": 2}, "Krum"),
        {"num_malicious_clients": 2},
    ),
    Case(
        "multi-Krum, m = 4",
        {"strategy": "multi-krum", "quorum": CLIENTS, "byzantine_updates": 2, "krum_selected": 4},
        "Krum",
        {"num_malicious_clients": 2, "num_clients_to_keep": 4},
        even=True,
    ),
)


def flower(name: str, keywords: dict[str, Any], start: Weights) -> Rounds:
    """Flower's strategy of this name."""
    from flwr.common import (
        Code,
        FitRes,
        Status,
        ndarrays_to_parameters,
        parameters_to_ndarrays,
    )
    from flwr.server import strategy

    logging.getLogger("flwr").setLevel(logging.ERROR)
    made = getattr(strategy, name)(initial_parameters=ndarrays_to_parameters(start), **keywords)

    def one_round(number: int, results: list[Result]) -> Weights:
        answers = [
            (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters(weights), examples, {}))
            for weights, examples in results
        ]
        parameters, _ = made.aggregate_fit(number, answers, [])
        return list(parameters_to_ndarrays(parameters))

    return one_round


def pfl(start: Weights) -> Rounds:
    """pfl-research's weighted mean of model updates, added to the model."""
    from pfl.aggregate.base import SumAggregator
    from pfl.stats import MappedVectorStatistics

    model = start

    def one_round(number: int, results: list[Result]) -> Weights:
        nonlocal model
        aggregator, total = SumAggregator(), None
        for weights, examples in results:
            deltas = {str(i): w - m for i, (w, m) in enumerate(zip(weights, model, strict=True))}
            statistics = MappedVectorStatistics(deltas, weight=1)
            statistics.reweight(examples)
            total = aggregator.accumulate(accumulated=total, user_stats=statistics)
        total.average()
        model = [m + np.asarray(total[str(i)]) for i, m in enumerate(model)]
        return model

    return one_round


def furthest(one: Rounds, other: Rounds, even: bool) -> float:
    """The largest difference between two programs' models, over all rounds and tensors.

    Clients train from the first program's model in both.
    """
    rng = np.random.default_rng(7)
    model, apart = start_weights(), 0.0
    for number in range(1, ROUNDS + 1):
        results: list[Result] = [
            (
                [m + rng.normal(0.02, 0.1, m.shape) for m in model],
                100 if even else int(rng.integers(10, 500)),
            )
            for _ in range(CLIENTS)
        ]
        model, theirs = one(number, results), other(number, results)
        for mine, its in zip(model, theirs, strict=True):
            apart = max(apart, float(np.abs(mine - its).max()))
    return apart


def start_weights() -> Weights:
    """The first model."""
    rng = np.random.default_rng(1)
    return [np.asarray(rng.normal(size=shape)) for shape in SHAPES]


def _strategy(aggregation: dict[str, Any]) -> Any:
    tables = {"participation": {"mode": "cohort"}, "aggregation": aggregation}
    return make_strategy(Experiment.model_validate(tables))


def _named(weights: Weights) -> dict[str, Any]:
    return {f"trainable/{i}": w for i, w in enumerate(weights)}


def _listed(state: State) -> Weights:
    return [np.asarray(array, np.float64) for array in model_of(state).values()]


def _update(sent: Weights, examples: int, turn: int) -> ClientUpdate:
    return ClientUpdate(
        run=Run(run_id="r", run_started=0, epoch=1),
        update_id=f"u{turn}",
        client=str(turn),
        turn=turn,
        base_version=0,
        worker="w",
        sends="delta",
        examples=examples,
        tensors=_named(sent),
    )


def main() -> None:
    print(f"{ROUNDS} rounds of {CLIENTS} clients, a model of {len(SHAPES)} float64 tensors\n")
    if importlib.util.find_spec("flwr"):
        version = importlib.metadata.version("flwr")
        print(f"| strategy | from Flower {version} | with its differences undone | which |")
        print("| --- | --- | --- | --- |")
        for case in CASES:
            apart = [
                furthest(
                    ours(case.aggregation, start_weights(), undo),
                    flower(case.flower, case.keywords, start_weights()),
                    case.even,
                )
                for undo in (nothing, case.undo)
            ]
            which = (
                " ".join((case.undo.__doc__ or "").split()) if case.undo is not nothing else "none"
            )
            print(f"| {case.name} | {apart[0]:.1e} | {apart[1]:.1e} | {which} |")
    else:
        print("flwr is not installed here: nothing is compared with Flower")
    if importlib.util.find_spec("pfl"):
        version = importlib.metadata.version("pfl")
        mine = ours({"strategy": "fedavg"}, start_weights(), nothing)
        apart = [furthest(mine, pfl(start_weights()), even=False)]
        print(f"\n| strategy | from pfl-research {version} |\n| --- | --- |")
        print(f"| FedAvg | {apart[0]:.1e} |")
    else:
        print("pfl is not installed here: nothing is compared with pfl-research")


if __name__ == "__main__":
    main()
