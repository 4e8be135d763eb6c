"""Every strategy, from its experiment file to a model that has learned something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.verify import replay, verify
from fluffle.schemas import Experiment
from fluffle.schemas.aggregation import strategies
from fluffle.simulation.virtual import VirtualRun

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow]

#: What they cannot do without, and what suits so short a run.
PARAMETERS: dict[str, dict[str, Any]] = {
    "fedavgm": {"server_beta_1": 0.5},
    "fedadagrad": {"server_learning_rate": 0.5},
    "fedadam": {"server_learning_rate": 0.2},
    "fedyogi": {"server_learning_rate": 0.2},
    "ringmaster": {"delay_threshold": 6, "server_learning_rate": 0.5, "quorum": 1},
    "fedasync": {"quorum": 1},
    "norm-bounding": {"norm_bound": 1.0},
}


@pytest.mark.parametrize("name", list(strategies()))
def test_it_learns_digits_and_its_run_is_verified_and_replayed(name: str, tmp_path: Path) -> None:
    # Given ten clients in flight whose durations differ
    aggregation = {"strategy": name, "quorum": 5, "keep_updates": True, **PARAMETERS.get(name, {})}
    document = {
        "experiment": {"versions": 100 // aggregation["quorum"]},
        "task": {"name": "digits-lr", "clients": 10},
        "training": {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 16},
        "aggregation": aggregation,
        "evaluation": {"every_updates": 100},
        "devices": {"delay": "exponential", "delay_s": 1.0},
    }
    experiment = Experiment.model_validate(document)

    # When a hundred of their updates have been counted
    VirtualRun(experiment, tmp_path, run_id="run", slots=1).run()

    # Then the model is right more often than not, and the run is what its ledger says
    ledger = LedgerReader(tmp_path)
    try:
        ((metrics,),) = ledger.query(
            "SELECT metrics FROM evaluations ORDER BY version DESC LIMIT 1"
        )
        assert json.loads(metrics)["accuracy"] > 0.5
        assert verify(ledger) == []
        replayed = replay(ledger)
        assert replayed.problem is None
        assert replayed.other_bytes == []
    finally:
        ledger.close()
