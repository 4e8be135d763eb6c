"""The models' benchmark in small: what its runs are, and what its tables say of them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fluffle.schemas import Experiment
from fluffle.worker.tasks.registry import TASKS

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its files as modules; they find each other as when they are run."""
    monkeypatch.setattr(sys, "path", [str(FOLDER / "models"), str(FOLDER), *sys.path])
    monkeypatch.setattr("fluffle.worker.tasks.registry.TASKS", dict(TASKS))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in {"arrays", "lora", "methods", "speed", "sweep", "zoo"} - before:
        sys.modules.pop(name, None)


def test_an_update_of_arrays_is_timed_without_its_training(
    part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a small model
    arrays = part("arrays")
    monkeypatch.setattr(arrays.Nothing, "shapes", {"w": (4, 3)})
    # When trainer and run are measured
    _, _, *rows = arrays.measure(updates=20, rounds=1)
    # Then there is a time for each, and a run's is the longer
    trainer, run = (float(row.split(" | ")[1]) for row in rows)
    assert 0 <= trainer < run


def test_the_methods_are_experiments_that_are_let_in(part: Any) -> None:
    methods = part("methods")
    for name, method in methods.METHODS.items():
        rate, value = methods.CHOSEN[name]
        for split in methods.SPLITS:
            document = methods.document(methods.Job(name, split, 1, rate, value))
            experiment = Experiment.model_validate(document)
            assert experiment.training.learning_rate == rate
        # And what the search chose is among what it tried
        assert rate in methods.LEARNING_RATES
        assert value in ((None,) if method.searched is None else method.searched[1])
    # And a parameter goes where its method looks for it
    assert methods.document(methods.Job("FedDyn", "two shards", 1, 0.1, 0.5))["aggregation"] == {
        **methods.COMMON["aggregation"],
        **{"strategy": "feddyn", "alpha": 0.5},
    }


def test_the_experiments_of_fine_tuning_differ_in_what_is_sent(part: Any) -> None:
    lora = part("lora")
    sent = {
        name: Experiment.model_validate(lora.tables(name, seed=1)).weights for name in lora.METHODS
    }
    assert sent["all weights"] is None
    assert sent["head alone"].send == ("head/*",)
    assert sent["LoRA, rank 1"].send == ("*lora*",)


def test_bytes_to_the_target_are_means_of_the_runs_that_all_reach_it(part: Any) -> None:
    # Given two runs that reach the target after 20 and 40 updates of 100 bytes
    lora = part("lora")
    Measured = sys.modules["sweep"].Measured

    def run(first: int) -> list[Any]:
        counts = range(10, 60, 10)
        return [Measured(n, n, 100 * n, n, 0.9 if n >= first else 0.5, 1.0) for n in counts]

    whole = 0.2, 0.006
    row = lora.row("half", [run(20), run(40)], whole)
    # Then they took 3 kB on average, a half of what all weights did
    assert row == "| half | 0.1 | 50.00 % | 30 (20 to 40) | 0.00 | 50.00 % |"
    # And a run that does not get there leaves the others without a figure
    assert "| 1 of 2 runs, 90.0% at most | – | – |" in lora.row("half", [run(20), run(1000)], whole)


def test_models_have_inputs_for_each_client(part: Any) -> None:
    zoo = part("zoo")
    for kind in zoo.KINDS.values():
        x, y = zoo.task_of(kind, clients=2)(2, None, 0).dataset()
        arrays = x.values() if isinstance(x, dict) else [x]
        assert {len(array) for array in (*arrays, y)} == {2 * kind.examples}
        assert np.isin(y, range(zoo.CLASSES)).all()
