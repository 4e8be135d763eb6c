"""Random streams of clients: independent over clients, turns, versions and purposes, everywhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from fluffle.aggregator.ledger.archive import Place, read_kept
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.weights import Store
from fluffle.aggregator.service import AggregatorService
from fluffle.aggregator.strategies.base import model_of
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import ClientUpdate, Experiment, Plan, Run, Tensors, decode, transforms
from fluffle.schemas.tensors import spec
from fluffle.schemas.user_code import load_class
from fluffle.simulation.virtual import VirtualRun
from fluffle.worker.devices import Devices
from fluffle.worker.services.outgoing import outgoing
from fluffle.worker.services.resident import ResidentService
from fluffle.worker.services.worker import WorkerService
from fluffle.worker.tasks import registry as tasks
from fluffle.worker.training.seeds import Purpose, Streams

#: 20 features, 10 classes: 210 weights. Each train draws a number, to tell its stream by.
TASK = """
import numpy as np
from fluffle import ArrayTask, Examples

RNG = np.random.default_rng(7)
TRUE = RNG.normal(size=(20, 10))
X = RNG.normal(size=(900, 20))
Y = (X @ TRUE).argmax(axis=1)


class Softmax(ArrayTask):
    def weights(self):
        return {"w": np.zeros((20, 10), "f4"), "b": np.zeros(10, "f4")}

    def dataset(self):
        return Examples(X[:600], Y[:600])

    def train(self, weights, client, rng, state):
        mine = np.flatnonzero(np.arange(600) % 3 == sum(client.encode()) % 3)
        for _ in range(10):
            batch = rng.permutation(mine)[:50]
            p = self.predicted(weights, X[batch])
            p[np.arange(50), Y[batch]] -= 1
            weights["w"] -= 0.5 * (X[batch].T @ p / 50).astype("f4")
            weights["b"] -= 0.5 * p.mean(axis=0).astype("f4")
        return weights, len(mine), {"drawn": rng.random()}, {}

    def predicted(self, weights, x):
        z = x @ weights["w"] + weights["b"]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def evaluate(self, weights):
        right = self.predicted(weights, X[600:]).argmax(axis=1) == Y[600:]
        return {"accuracy": float(right.mean())}
"""
SITES = ("lab-a", "lab-b", "lab-c")
#: A tenth of the values; memory would hide which were drawn, and pooled clients keep it.
RANDOM_K = [{"kind": "random_k", "share": 0.1, "error_feedback": False}]


@pytest.fixture
def softmax(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "softmax.py").write_text(TASK)
    tasks.use(f"{tmp_path / 'softmax.py'}:Softmax", None)
    yield tmp_path
    tasks.use(None, None)


def experiment(clients: int, **tables: Any) -> Experiment:
    residents = {"participation": {"residents": SITES, "identity": "none"}} if not clients else {}
    return Experiment.model_validate(
        {
            "experiment": {"versions": 60},
            "task": {"name": "softmax.py:Softmax", "clients": clients},
            "aggregation": {"strategy": "fedbuff", "quorum": 3, "keep_updates": True},
            "evaluation": {"every_updates": 0},
            **residents,
            **tables,
        }
    )


ZERO = {"trainable/w": np.zeros((20, 10), np.float32), "trainable/b": np.zeros(10, np.float32)}


def run(folder: Path, how: str, **tables: Any) -> Path:
    """A finished run's folder: of three sites, of pooled clients, or of such in virtual time."""
    given = experiment(0 if how == "sites" else 9, **tables)
    if how == "virtual":
        assert VirtualRun(given, folder, run_id="run", slots=2, initial=ZERO).run() == "finished"
        return folder
    broker = EmbeddedBroker()
    services: list[Any] = [WorkerService(broker.worker("w", 2), "w", 2)]
    if how == "sites":
        services = [ResidentService(broker.worker(name, 0), name) for name in SITES]
    threads = [threading.Thread(target=service.run) for service in services]
    for thread in threads:
        thread.start()
    lead = AggregatorService(given, broker.aggregator(), folder, run_id="run", initial=ZERO)
    assert lead.run() == "finished"
    for thread in threads:
        thread.join(60)
    return folder


def sent(folder: Path) -> list[ClientUpdate]:
    """Every update of a run, as it travelled."""
    ledger = LedgerReader(folder)
    rows = ledger.query("SELECT segment, start, bytes, sha256 FROM kept")
    ledger.close()
    bodies = [read_kept(folder, Place(*row)) for row in rows]
    return [u for u in (decode(body or b"") for body in bodies) if isinstance(u, ClientUpdate)]


def last_model(folder: Path) -> Tensors:
    ledger = LedgerReader(folder)
    ((file,),) = ledger.query("SELECT file FROM versions ORDER BY version DESC LIMIT 1")
    ledger.close()
    return {n: a for n, a in model_of(Store(folder).read(file)).items() if "trainable" in n}


def accuracy(site: Path, folder: Path) -> float:
    kind = load_class(site / "softmax.py", "Softmax")
    weights = {name.partition("/")[2]: array for name, array in last_model(folder).items()}
    return float(kind.evaluate(kind.__new__(kind), weights)["accuracy"])


def moved(folder: Path) -> float:
    """The share of weights that are not what they began as."""
    values = np.concatenate([a.reshape(-1) for a in last_model(folder).values()])
    return float((values != 0).mean())


def test_no_two_streams_draw_the_same_or_follow_one_another() -> None:
    # Given pooled and resident clients, turns, versions and purposes, neighbours and far apart
    purposes, clients = get_args(Purpose), ("0", "1", "11", "lab-3", "lab-31")
    places = (0, 1, 2, 11, 12, 1000)
    keys = [*product((1, 2, 11), clients, places, places)]
    streams = [(Streams(*key), purpose) for key in keys for purpose in purposes]
    first = [stream.generator(purpose).bytes(16) for stream, purpose in streams]
    assert len(set(first)) == len(streams) == 3 * 5 * 6 * 6 * 6
    seeds = {tuple(stream.seeds(purpose, 2).reshape(-1)) for stream, purpose in streams}
    assert len(seeds) == len(streams)
    # Then draws of neighbours in any direction are uncorrelated
    drawn = np.stack([s.generator(p).normal(size=500) for s, p in streams[:1500]])
    for apart in (1, 6, 36, 216):
        correlation = float((drawn[apart:] * drawn[:-apart]).mean())
        assert abs(correlation) < 5 / np.sqrt(drawn[apart:].size)


def test_what_devices_draw_for_a_turn_is_nobody_elses() -> None:
    table = {"delay": "exponential", "delay_s": 1.0, "delay_of": "turn", "dropout": 0.5}
    given = {"task": {"clients": 40}, "devices": {**table, "stragglers": 0.5}}
    devices = Devices(Plan.of(Experiment.model_validate(given), "delta"))
    outcomes = [[devices.outcome(str(c), turn) for turn in range(40)] for c in range(40)]
    delays = np.array([[o.delay_s for o in row] for row in outcomes])
    lost = np.array([[o.lost_at is None for o in row] for row in outcomes], float)
    assert len(np.unique(delays)) == delays.size
    for one in (delays - 1, lost - 0.5):
        for other in (one[1:, :], one[:, 1:]):
            same = one[: other.shape[0], : other.shape[1]]
            assert abs((same * other).mean()) < 5 * one.var() / np.sqrt(other.size)
    assert abs(((delays - 1) * (lost - 0.5)).mean()) < 5 * 0.5 / np.sqrt(delays.size)


@pytest.mark.parametrize("how", ["pooled", "virtual"])
def test_in_a_run_every_update_has_its_own_draws(softmax: Path, how: str) -> None:
    _each_has_its_own(run(softmax / how, how, experiment={"versions": 12}, update=RANDOM_K))


def test_random_k_at_sites_reaches_all_weights_and_learns(softmax: Path) -> None:
    # Given three sites that send a tenth of their values in each of 60 versions
    folder = run(softmax / "sites", "sites", update=RANDOM_K)
    _each_has_its_own(folder)
    # Then no weight is left as it was (57 of 210 ever moved when a site drew the same in every
    # version), and the model is as good as one of whole updates, which gets 0.86 (it was 0.27)
    assert moved(folder) > 0.99
    assert accuracy(softmax, folder) > 0.8


def _each_has_its_own(folder: Path) -> None:
    """No two updates chose the same values, or trained with the same draws."""
    updates = sent(folder)
    assert len(updates) >= 36
    assert len({int(u.tensors["sparse/seed"][0]) for u in updates}) == len(updates)
    assert len({u.metrics["drawn"] for u in updates}) == len(updates)


def test_rounding_at_a_site_is_right_on_average_over_versions() -> None:
    # Given one update of a site in a hundred versions, rounded to one bit
    table = {"task": {"clients": 0}, "update": [{"kind": "quantise", "bits": 1}]}
    given = {**table, "participation": {"residents": ["lab-3"]}}
    plan = Plan.of(Experiment.model_validate(given), "delta")
    delta = np.random.default_rng(1).normal(size=2000).astype(np.float32)
    back = []
    for version in range(100):
        update = ClientUpdate(
            run=Run(run_id="run", run_started=1, epoch=1),
            **{"update_id": "u", "client": "lab-3", "turn": 1, "base_version": version},
            **{"worker": "lab-3", "sends": "delta", "examples": 1},
            tensors={"trainable/0": delta},
        )
        left, _ = outgoing(update, plan, None, np.random.default_rng)
        assert plan.update is not None
        whole = transforms.restore(plan.update, left.tensors, spec(update.tensors))
        back.append(whole["trainable/0"])
    error = np.sqrt(np.square(np.mean(back, axis=0) - delta).mean())
    # Then the error of their mean is a tenth of one's, as of independent draws
    one = np.sqrt(np.square(back[0] - delta).mean())
    assert error == pytest.approx(one / 10, rel=0.1)
