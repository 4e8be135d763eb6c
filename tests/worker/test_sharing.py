"""Trainers that one run leaves for the next: the same bytes, and none where that is not certain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.schemas import Experiment
from fluffle.schemas.experiment import PartitionTable
from fluffle.simulation.virtual import VirtualRun
from fluffle.worker.tasks.task import Examples, Task
from fluffle.worker.training.sharing import Trainers, _same_task

pytestmark = pytest.mark.tensorflow


def run(folder: Path, trainers: Trainers | None, name: str = "digits-lr", **tables: Any) -> str:
    document: dict[str, Any] = {
        "experiment": {"versions": 3, "seed": 1},
        "task": {"name": name, "clients": 5},
        "partition": {"kind": "dirichlet"},
        "training": {"optimizer": "adam", "epochs": 2},
        "evaluation": {"every_updates": 3, "examples": 50},
        "devices": {"delay": "half_normal", "delay_s": 3.0},
    }
    document = {k: {**document.get(k, {}), **tables.get(k, {})} for k in {**document, **tables}}
    experiment = Experiment.model_validate(document)
    more = {"trainers": trainers.of} if trainers else {}
    assert VirtualRun(experiment, folder, run_id="run", slots=1, **more).run() == "finished"
    if trainers:
        trainers.end()
    ledger = LedgerReader(folder)
    rows = ledger.query("SELECT weights_sha256 FROM versions ORDER BY version")
    rows += ledger.query("SELECT metrics FROM evaluations ORDER BY version")
    ledger.close()
    return str(rows)


def test_what_was_compiled_for_one_seed_gives_the_bytes_of_another(tmp_path: Path) -> None:
    # Given settings of which some come to a compiled training from outside
    settings: list[dict[str, Any]] = [
        {},
        {"experiment": {"seed": 2}},
        {"aggregation": {"quorum": 2}},
        {"partition": {"kind": "iid"}, "task": {"clients": 8}, "evaluation": {"examples": 80}},
        {"devices": {"delay_s": 9.0}},
    ]
    trainers = Trainers()
    shared = [run(tmp_path / f"s{n}", trainers, **t) for n, t in enumerate(settings)]
    # When they run one after the other, one training is compiled for all
    assert (trainers.built, trainers.reused) == (1, 4)
    # And each has the bytes and the metrics of a run by itself
    alone = [run(tmp_path / f"a{n}", None, **t) for n, t in enumerate(settings)]
    assert shared == alone
    # And what a training is made of is compiled anew
    run(tmp_path / "other", trainers, training={"learning_rate": 0.01})
    assert (trainers.built, trainers.reused) == (2, 4)


class Blobs(Task):
    """In memory, the same for every run."""

    def __init__(self, seed: int) -> None:
        super().__init__(2, PartitionTable(), seed)
        self.scale = 2.0

    def model(self) -> Any: ...

    def dataset(self) -> Examples:
        return Examples(np.arange(8.0).reshape(4, 2) * self.scale, np.arange(4))

    def test(self) -> Examples:
        return self.dataset()

    def owners(self) -> Any:
        return np.random.default_rng(self.seed).integers(self.clients, size=4)


class Seeded(Blobs):
    """Its data are drawn from the seed."""

    def dataset(self) -> Examples:
        return Examples(np.random.default_rng(self.seed).normal(size=(4, 2)), np.arange(4))


class Warped(Blobs):
    """The seed is in its preprocessing, within the compiled loop."""

    def preprocess(self, x: Any) -> Any:
        return next(x * part.seed for part in (self,))


def test_a_task_of_ones_own_is_shared_where_nothing_of_its_run_is_in_it() -> None:
    assert _same_task(Blobs(1), Blobs(2))
    assert not _same_task(Seeded(1), Seeded(2))
    assert not _same_task(Warped(1), Warped(2))
    assert not _same_task(Blobs(1), Warped(1))
    # Nor where it holds something else, such as a parameter
    other = Blobs(2)
    other.scale = 3.0
    assert not _same_task(Blobs(1), other)
