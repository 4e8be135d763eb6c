"""Whole virtual runs of a task that costs nothing, for tests of time and turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.verify import verify
from fluffle.schemas import Experiment
from fluffle.simulation.virtual import VirtualRun

#: Each client pulls a vector its own way; there is no framework.
TASK = """
import numpy as np
from fluffle import ArrayTask

class Pull(ArrayTask):
    def weights(self):
        return {"w": np.zeros(2, np.float32)}

    def client_indices(self, client):
        return np.arange(10)

    def train(self, weights, client, rng, state):
        weights["w"] += np.float32(0.1) * (int(client) + 1 - weights["w"])
        return weights, 10, {"loss": 1.0}, {}

    def evaluate(self, weights):
        return {"loss": 1.0}
"""


def simulate(
    folder: Path, monkeypatch: Any, slots: int = 1, **tables: Any
) -> tuple[float, list[dict[str, Any]]]:
    """When the run was over, in virtual seconds, and its events."""
    folder.mkdir(parents=True)
    (folder / "pull.py").write_text(TASK)
    monkeypatch.setenv("FLUFFLE_TASK", str(folder))
    task = {"name": "pull.py:Pull", **tables.pop("task")}
    experiment = Experiment.model_validate(
        {
            "evaluation": {"every_updates": 0},
            "training": {"optimizer": "sgd"},
            "task": task,
            **tables,
        }
    )
    virtual = VirtualRun(experiment, folder / "run", run_id="run", slots=slots)
    assert virtual.run() == "finished"
    ledger = LedgerReader(folder / "run")
    assert verify(ledger) == []
    ledger.close()
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    return virtual.clock.now, [json.loads(line) for line in lines]
