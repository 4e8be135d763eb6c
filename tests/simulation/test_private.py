"""A private run as a whole: recomputed by who has its folder, reported with what it reveals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.verify import verify
from fluffle.aggregator.verify.replay import replay
from fluffle.report.data import read_runs
from fluffle.report.page import write_report
from fluffle.schemas import Experiment
from fluffle.simulation.virtual import VirtualRun

pytestmark = pytest.mark.tensorflow

TABLES: dict[str, Any] = {
    "experiment": {"versions": 6, "seed": 3},
    "task": {"name": "digits-lr", "clients": 20},
    "training": {"optimizer": "sgd", "learning_rate": 0.1},
    "participation": {"concurrency": 8},
    "aggregation": {"quorum": 4, "keep_updates": True},
    "evaluation": {"every_updates": 12},
    "privacy": {"clip_norm": 0.5, "noise_multiplier": 0.3},
}


def test_a_private_run_can_be_replayed_and_says_what_it_reveals(tmp_path: Path) -> None:
    given = Experiment.model_validate(TABLES)
    assert VirtualRun(given, tmp_path, run_id="run", slots=2).run() == "finished"
    ledger = LedgerReader(tmp_path)
    assert verify(ledger) == []
    assert replay(ledger).problem is None
    epsilon = summarise(ledger)["epsilon"]
    assert epsilon > 1
    ledger.close()
    # And its report has the figure, and the number of the summary
    (run,) = read_runs([tmp_path])
    assert run.epsilon[-1] == pytest.approx(epsilon, rel=1e-4)
    assert len(run.epsilon) == len(run.versions.updates)
    page = write_report([tmp_path], tmp_path / "report")
    assert (tmp_path / "report" / "privacy.svg").is_file()
    assert "delta 1e-05" in page.read_text(encoding="utf-8")
