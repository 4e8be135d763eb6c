"""What an update of an ``ArrayTask`` costs besides the task's own ``train``."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fluffle import ArrayTask
from fluffle.schemas import Experiment, Plan
from fluffle.worker.tasks.registry import TASKS

NAME = "benchmark-arrays"
#: The 784-128-10 network: 101,770 parameters.
SHAPES = {"hidden": (784, 128), "hidden_bias": (128,), "out": (128, 10), "out_bias": (10,)}


class Nothing(ArrayTask):
    """Weights that a turn moves a little, and next to no training."""

    shapes = SHAPES
    #: What each call of ``train`` took itself.
    own_s: list[float]

    def weights(self) -> dict[str, Any]:
        """Zeros."""
        type(self).own_s = []
        return {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()}

    def client_indices(self, client: str) -> Any:
        """As many as the virtual clock wants to know of."""
        return np.arange(10, dtype=np.int32)

    def train(self, weights: dict[str, Any], client: str, rng: Any, state: Any) -> Any:
        """A step into a direction of the client's own."""
        started = time.thread_time()
        for array in weights.values():
            array += np.float32(1e-3 * (int(client) % 7 - 3))
        self.own_s.append(time.thread_time() - started)
        return weights, 10, {"loss": 0.0}, {}

    def evaluate(self, weights: dict[str, Any]) -> dict[str, float]:
        """Nothing to measure."""
        return {"loss": 0.0}


def experiment(versions: int) -> Experiment:
    """Ten updates a version, twenty clients in flight."""
    return Experiment.model_validate(
        {
            "experiment": {"versions": versions},
            "task": {"name": NAME, "clients": 100},
            "participation": {"concurrency": 20},
            "aggregation": {"strategy": "fedbuff", "quorum": 10},
            "evaluation": {"every_updates": 0},
        }
    )


def of_trainer(updates: int) -> list[float]:
    """CPU seconds of each ``train`` of the trainer, the task's own left out."""
    from fluffle.worker.training.arrays import ArrayTrainer

    trainer = ArrayTrainer(Plan.of(experiment(1), "delta"))
    base, seconds = trainer.initial(), []
    for turn in range(updates):
        started = time.thread_time()
        trainer.train(base, str(turn % 100), turn)
        seconds.append(time.thread_time() - started - Nothing.own_s[-1])
    return seconds


def of_run(versions: int) -> float:
    """CPU seconds of a whole run by its updates, the task's own left out: one slot, virtual clock.

    With messages, checks, folding, versions on disk and the ledger. Not by the clock on the wall:
    a run waits for the disk with each version, and a machine that does other things for them.
    """
    from fluffle.simulation.virtual import VirtualRun

    with tempfile.TemporaryDirectory() as folder:
        run = VirtualRun(experiment(versions), Path(folder), run_id="run", slots=1)
        started = time.process_time()
        run.run()
        seconds = time.process_time() - started
    return (seconds - sum(Nothing.own_s)) / len(Nothing.own_s)


def measure(updates: int = 500, rounds: int = 3) -> list[str]:
    """The lines of the table: medians of rounds, in CPU ms for an update."""
    TASKS[NAME] = Nothing
    trainer: list[float] = []
    run: list[float] = []
    for _ in range(rounds):
        trainer.append(statistics.median(of_trainer(updates)))
        run.append(of_run(updates // 10))
    parameters = sum(int(np.prod(shape)) for shape in Nothing.shapes.values())
    lines = [
        f"| ArrayTask of {parameters:,} parameters | CPU ms an update | least to most | aim |",
        "| --- | --- | --- | --- |",
    ]
    for name, found in {"the trainer around train()": trainer, "a whole run": run}.items():
        low, middle, high = (1e3 * f(found) for f in (min, statistics.median, max))
        lines.append(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | ≤ 2 |")
    return lines
