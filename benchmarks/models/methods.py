"""Methods for clients whose data differ, beside FedAvg: the global model and the clients' own.

Fashion-MNIST, 2,000 images on twenty clients; rounds of ten, under the virtual clock.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sweep import Tables, merged

from fluffle import Examples, Task

CLIENTS, TRAIN, TEST = 20, 2000, 2000
SEEDS = (1, 2, 3)
VERSIONS = 30
#: So many of them are measured.
LAST = 5
SEARCH_SEED = 100
LEARNING_RATES = (0.03, 0.1, 0.3)
SPLITS: dict[str, Tables] = {
    # Concentration 0.1 for each of ten balanced classes.
    "Dirichlet(0.1)": {"kind": "dirichlet", "alpha": 1.0},
    "two shards": {"kind": "shards", "shards_per_client": 2},
}
COMMON: Tables = {
    "task": {"name": "methods.py:Clothes", "clients": CLIENTS},
    "training": {"epochs": 4, "batch_size": 20, "optimizer": "sgd"},
    "participation": {"mode": "cohort", "sampling_rate": 0.5},
    "aggregation": {"quorum": 10, "deadline_s": 10_000.0, "keep_versions": LAST},
    "evaluation": {"every_updates": 0},  # done at the end
}


class Method(NamedTuple):
    """What an experiment says for it."""

    tables: Tables
    #: Of the parameter that is searched: table, key, and values; the first one with all rates.
    searched: tuple[tuple[str, ...], tuple[float, ...]] | None = None
    #: Whether clients have models of their own, which are then what it is about.
    personal: bool = False


_FEDAVG = {"aggregation": {"strategy": "fedavg"}}
_PULL = ("training", "algorithm_parameters", "pull")
METHODS: dict[str, Method] = {
    "FedAvg": Method(_FEDAVG),
    "FedDyn": Method(
        {"aggregation": {"strategy": "feddyn"}}, (("aggregation", "alpha"), (0.1, 0.01, 1.0))
    ),
    "MOON": Method(
        merged(_FEDAVG, {"training": {"algorithm": "moon"}}),
        (("training", "algorithm_parameters", "mu"), (1.0, 0.1, 5.0)),
    ),
    "FedBN": Method(merged(_FEDAVG, {"weights": {"keep": ["batch_normalization*"]}}), None, True),
    "FedPer": Method(merged(_FEDAVG, {"weights": {"keep": ["head/*"]}}), None, True),
    "FedRep": Method(
        merged(_FEDAVG, {"weights": {"keep": ["head/*"]}}, {"training": {"algorithm": "fedrep"}}),
        None,
        True,
    ),
    "Ditto": Method(
        merged(_FEDAVG, {"training": {"algorithm": "ditto"}}), (_PULL, (1.0, 0.1, 0.01)), True
    ),
    # Ditto's personal models, pulled by nothing.
    "each client alone": Method(
        merged(
            _FEDAVG,
            {"training": {"algorithm": "ditto", "algorithm_parameters": {"pull": 0.0}}},
        ),
        None,
        True,
    ),
}


#: Whose global model clients also train once more.
TUNED = "FedAvg"


class Job(NamedTuple):
    """One run."""

    method: str
    split: str
    seed: int
    learning_rate: float
    #: Of the method's own parameter, where it has one.
    value: float | None = None
    versions: int = VERSIONS


class Found(NamedTuple):
    """Accuracies of a run, on test examples."""

    #: Of the global model: the mean of the last five versions.
    shared: float
    #: The mean of the clients' own models, each on examples like its own.
    own: float
    #: The same after one more local training each, where that is measured.
    tuned: float | None


class Clothes(Task):
    """The first images of Fashion-MNIST."""

    def model(self) -> Any:
        """784-64-10 with batch normalisation."""
        import keras
        from keras import layers

        inner = layers.Dense(64, use_bias=False), layers.BatchNormalization(), layers.ReLU()
        head = layers.Dense(10, activation="softmax", name="head")
        return keras.Sequential([keras.Input((784,)), *inner, head])

    def dataset(self) -> Examples:
        """What clients have."""
        return _images("train", 0, TRAIN)

    def test(self) -> Examples:
        """What tables are of; searches have others, of the training images."""
        if self.seed == SEARCH_SEED:
            return _images("train", TRAIN, TRAIN + TEST)
        return _images("test", 0, TEST)

    def preprocess(self, x: Any) -> Any:
        """0 to 1."""
        import tensorflow as tf

        return tf.cast(x, tf.float32) / 255


@cache
def _images(part: str, start: int, end: int) -> Examples:
    from fluffle.worker.datasets import load

    data = load("fashion-mnist")
    x, y = (np.asarray(getattr(data, f"{a}_{part}")[start:end]) for a in "xy")
    return Examples(x.reshape(len(x), -1), y)


def document(job: Job) -> Tables:
    """The experiment of a run."""
    method = METHODS[job.method]
    own: dict[str, Any] = {
        "experiment": {"seed": job.seed, "versions": job.versions},
        "partition": SPLITS[job.split],
        "training": {"learning_rate": job.learning_rate},
    }
    found = merged(COMMON, method.tables, own)
    if method.searched is not None and job.value is not None:
        at = found
        *path, key = method.searched[0]
        for name in path:
            at[name] = dict(at.get(name, {}))
            at = at[name]
        at[key] = job.value
    return found


def measure(job: Job) -> Found:
    """Run it, and measure what there is at the end."""
    from fluffle.aggregator.ledger.reader import LedgerReader
    from fluffle.schemas import Experiment
    from fluffle.simulation.virtual import VirtualRun
    from fluffle.worker.services.client_state import ClientStates

    experiment = Experiment.model_validate(document(job))
    with tempfile.TemporaryDirectory() as folder:
        states = Path(folder) / "states"
        kept = ClientStates(states)
        VirtualRun(experiment, Path(folder), run_id="run", slots=1, states=kept).run()
        with closing(LedgerReader(Path(folder))) as ledger:
            return _found(ledger, experiment, ClientStates(states), job.method == TUNED)


def _found(ledger: Any, experiment: Any, states: Any, tuned: bool) -> Found:
    from fluffle.aggregator.strategies.base import broadcast_of
    from fluffle.aggregator.strategies.registry import make_strategy
    from fluffle.schemas import Plan
    from fluffle.schemas.tensors import model_groups
    from fluffle.worker.tasks.by_client import ByClient
    from fluffle.worker.tasks.registry import load_task
    from fluffle.worker.training.per_plan import make_trainer

    strategy = make_strategy(experiment)
    plan = Plan.of(experiment, strategy.sends, getattr(strategy, "asks", None))
    model, trainer = _Model(plan), make_trainer(plan) if tuned else None
    files = ledger.query("SELECT file FROM versions ORDER BY version DESC LIMIT ?", LAST)
    versions = [broadcast_of(strategy, ledger.store.read(file)) for (file,) in files]
    everything = [np.arange(TEST)]
    shared = [float(model.right(everything, model_groups(v), {})[0]) for v in versions]
    names, base = ledger.client_states(), versions[0]
    by_client = ByClient(load_task(plan), np.arange(TEST, dtype=np.int32))
    own: list[float] = []
    after: list[float] = []
    for client, weights in enumerate(by_client.weights):
        name = names.get(str(client), "")
        state = (states.load("run", str(client), name) if name else None) or {}
        own.append(float(weights @ model.right(by_client.groups, model_groups(base), state)))
        if trainer is not None:
            local = trainer.train(base, str(client), f"more-{client}").tensors
            after.append(float(weights @ model.right(by_client.groups, local, {})))
    return Found(
        statistics.mean(shared), statistics.mean(own), statistics.mean(after) if after else None
    )


class _Model:
    """The task's model, with one client's weights after the other's."""

    def __init__(self, plan: Any) -> None:
        import tensorflow as tf

        from fluffle.worker.tasks.registry import load_task
        from fluffle.worker.training.trainer import seeded
        from fluffle.worker.training.travel import Travel

        task = load_task(plan)
        with seeded(plan.seed):
            self._model = task.model()
        self._travel = None if plan.weights is None else Travel(plan.weights, self._model)
        x, self._y = task.test()
        self._predict = tf.function(
            lambda: self._model(task.preprocess(x), training=False), autograph=False
        )

    def right(self, groups: Any, tensors: Any, state: Any) -> NDArray[np.float64]:
        """The accuracy on each group of test examples of a client's own model: what it keeps as a
        whole (Ditto), or what it keeps of one that is shared.
        """
        from fluffle.worker.training.variables import parameters_of, values_of

        ditto = "ditto/"
        own = {k.removeprefix(ditto): a for k, a in state.items() if k.startswith(ditto)}
        whole = own or tensors
        if self._travel is not None:
            whole = self._travel.inward(whole, state)
        variables = [*parameters_of(self._model), *values_of(self._model)]
        for variable, value in zip(variables, whole.values(), strict=True):
            variable.assign(value)
        right = np.argmax(self._predict(), axis=1) == self._y
        return np.array([right[group].mean() for group in groups])


def _measured(job: Job) -> tuple[Job, Found]:
    from fluffle.worker.training.runtime import configure

    os.environ["FLUFFLE_TASK"] = str(Path(__file__).parent)
    configure(1)
    return job, measure(job)


def measured(jobs: Iterable[Job], processes: int) -> Iterator[tuple[Job, Found]]:
    """Of many runs, as they come."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, maxtasksperchild=30) as pool:
        yield from pool.imap_unordered(_measured, jobs)


def score(method: str, found: Found) -> float:
    """What a search goes by."""
    return found.own if METHODS[method].personal else found.shared


def _parameter(method: str) -> str:
    """The name of what is searched besides the rate."""
    searched = METHODS[method].searched
    return searched[0][-1] if searched else ""


def search(processes: int) -> None:
    """Print the grid, on the search's seed and the first split, for half as many versions.

    All learning rates with the parameter's first value, then its other values with the best rate.
    """
    best: dict[str, tuple[float, Job]] = {}

    def take(jobs: list[Job]) -> None:
        for job, found in measured(jobs, processes):
            value = score(job.method, found)
            name = (
                "" if job.value is None else f", {METHODS[job.method].searched[0][-1]} {job.value}"
            )
            print(f"{job.method}, rate {job.learning_rate}{name}: {100 * value:.1f}", flush=True)
            known = best.get(job.method)
            if known is None or value > known[0]:
                best[job.method] = value, job

    def values(method: str) -> tuple[float | None, ...]:
        searched = METHODS[method].searched
        return (None,) if searched is None else searched[1]

    split = next(iter(SPLITS))
    take(
        [
            Job(method, split, SEARCH_SEED, rate, values(method)[0], VERSIONS // 2)
            for method, rate in itertools.product(METHODS, LEARNING_RATES)
        ]
    )
    take([best[m][1]._replace(value=v) for m in METHODS for v in values(m)[1:]])
    for method, (_, job) in best.items():
        print(f"best of {method}: {job.learning_rate}, {job.value}")


#: What the search chose: the learning rate, and the method's own parameter.
CHOSEN: dict[str, tuple[float, float | None]] = {
    "FedAvg": (0.1, None),
    "FedDyn": (0.03, 1.0),
    "MOON": (0.3, 0.1),
    "FedBN": (0.03, None),
    "FedPer": (0.3, None),
    "FedRep": (0.1, None),
    "Ditto": (0.03, 0.1),
    "each client alone": (0.1, None),
}


def table(seeds: int, processes: int, out: Path) -> None:
    """Run what the table is of, and print it."""
    jobs = [
        Job(method, split, seed, *CHOSEN[method])
        for method, split, seed in itertools.product(METHODS, SPLITS, SEEDS[:seeds])
    ]
    found = dict(measured(jobs, processes))
    rows = [job._asdict() | result._asdict() for job, result in found.items()]
    lines = sorted(json.dumps(row) for row in rows)
    out.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print_table(found)


def print_table(found: Mapping[Job, Found]) -> None:
    """Means and standard deviations over seeds, in percent."""
    heads = [f"{split}, {what}" for split in SPLITS for what in ("global", "own")]
    print("| method | seeds | " + " | ".join(heads) + " |")
    print("| --- | --- |" + " --- |" * len(heads))
    for method in METHODS:
        seeds = len({job.seed for job in found if job.method == method})
        print(f"| {method} | {seeds} | {_cells(method, False, found)} |")
        if method == TUNED:
            print(f"| {method}, trained once more | {seeds} | {_cells(method, True, found)} |")


def _cells(method: str, tuned: bool, found: Mapping[Job, Found]) -> str:
    """Of each split the global model's accuracy, where there is a whole one, and the clients'."""
    whole = "weights" not in METHODS[method].tables and not tuned
    cells = []
    for split in SPLITS:
        of = [result for job, result in found.items() if job[:2] == (method, split)]
        cells.append(_spread([r.shared for r in of]) if whole else "–")
        cells.append(_spread([(r.tuned or 0.0) if tuned else r.own for r in of]))
    return " | ".join(cells)


def _spread(values: list[float]) -> str:
    around = f" ± {100 * statistics.stdev(values):.1f}" if values[1:] else ""
    return f"{100 * statistics.mean(values):.1f}{around}"
