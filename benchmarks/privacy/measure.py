"""Accuracy and epsilon of each mechanism at one noise multiplier. README.md says what to expect.

python benchmarks/privacy/measure.py
"""

from __future__ import annotations

import json
import statistics
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from fluffle.aggregator.ledger.privacy import epsilons
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.schemas import Experiment
from fluffle.simulation.virtual import VirtualRun
from fluffle.worker.tasks import registry as tasks

SEEDS = (1, 2, 3)
INITIAL = {"trainable/w": np.zeros((64, 10)), "trainable/b": np.zeros(10)}
REST = {"selection": "min-separation", "selection_parameters": {"separation": 16}}
MODES: dict[str, dict[str, Any]] = {
    "concurrent": {"participation": {"concurrency": 10}, "quorum": 10},
    "cohort": {"participation": {"mode": "cohort", "sampling_rate": 0.05}, "quorum": None},
}
#: Name -> (participation, privacy) besides.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gaussian": ({}, {}),
    "gaussian, clients rest": (REST, {}),
    "banded-mf, clients rest": (REST, {"mechanism": "banded-mf"}),
    "gaussian, sampled": ({}, {"sampling": "poisson"}),
}


def measure(folder: Path, mode: str, way: str, seed: int) -> tuple[float, float]:
    """Accuracy and epsilon at the end of one run."""
    table, (participation, privacy) = MODES[mode], WAYS[way]
    quorum = {} if table["quorum"] is None else {"quorum": table["quorum"]}
    experiment = Experiment.model_validate(
        {
            "experiment": {"versions": 200, "seed": seed},
            "task": {"name": "digits_softmax.py:Digits", "clients": 200},
            "partition": {"kind": "iid"},
            "participation": {**table["participation"], **participation},
            "aggregation": {
                **{"strategy": "fedbuff", "deadline_s": 1e6, "max_staleness": 20},
                **{"server_learning_rate": 1.0, **quorum},
            },
            "privacy": {"clip_norm": 0.5, "noise_multiplier": 3.0, **privacy},
            "evaluation": {"every_updates": 100},
            "devices": {"delay": "exponential", "delay_s": 5.0},
        }
    )
    run = VirtualRun(experiment, folder, run_id="run", slots=1, initial=INITIAL)
    assert run.run() == "finished"
    with closing(LedgerReader(folder)) as ledger:
        _, metrics, *_ = ledger.evaluations()[-1]
        return float(json.loads(metrics)["accuracy"]), epsilons(ledger)[-1][1]


def main() -> None:
    """Print the table, a row for each way."""
    tasks.use(f"{Path(__file__).with_name('digits_softmax.py')}:Digits", None)
    print("| mode | noise | accuracy (%) | epsilon |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as root:
        for mode in MODES:
            for way in WAYS:
                if "sampled" in way and mode != "cohort":
                    continue
                found = [measure(Path(root, f"{mode}-{way}-{s}"), mode, way, s) for s in SEEDS]
                accuracy = [100 * a for a, _ in found]
                spread = statistics.stdev(accuracy)
                epsilon = statistics.mean(e for _, e in found)
                mean = statistics.mean(accuracy)
                print(f"| {mode} | {way} | {mean:.1f} ± {spread:.1f} | {epsilon:.2f} |", flush=True)


if __name__ == "__main__":
    main()
