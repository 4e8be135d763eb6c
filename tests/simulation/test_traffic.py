"""All that travels is counted: what counts in a version, what comes too late, what is lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.totals import TotalsReader
from fluffle.report.data import read_run
from fluffle.report.tables import facts
from fluffle.schemas import Experiment
from fluffle.simulation.virtual import VirtualRun
from fluffle.worker.tasks import registry as tasks

TASK = """
import numpy as np
from fluffle import ArrayTask, Examples


class Means(ArrayTask):
    def weights(self):
        return {"mean": np.zeros(50, "f4")}

    def dataset(self):
        return Examples(np.zeros((400, 1)), np.zeros(400, int))

    def train(self, weights, client, rng, state):
        weights["mean"] += rng.normal(size=50).astype("f4")
        if self.seed == 1 and client == "0":
            weights["mean"] += np.nan
        return weights, 10, {"loss": 1.0}, {}

    def evaluate(self, weights):
        return {"loss": 1.0}
"""
MODEL = {"trainable/mean": np.zeros(50, np.float32)}
MODEL_BYTES = 200


@pytest.fixture(autouse=True)
def means(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "means.py").write_text(TASK)
    tasks.use(f"{tmp_path / 'means.py'}:Means", None)
    yield
    tasks.use(None, None)


def simulate(folder: Path, **tables: Any) -> tuple[dict[str, Any], Counter[str]]:
    """A run's summary, and how many of its turns arrived and where others were lost."""
    given = {
        "task": {"name": "means.py:Means", "clients": 40},
        "evaluation": {"every_updates": 0},
        **tables,
    }
    experiment = Experiment.model_validate(given)
    run = VirtualRun(experiment, folder, run_id="run", slots=2, initial=MODEL)
    assert run.run() == "finished"
    with closing(LedgerReader(folder)) as ledger:
        summary = summarise(ledger)
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return summary, Counter(e.get("where", e["event"]) for e in lines)


def test_late_updates_of_an_over_selected_cohort_are_traffic(tmp_path: Path) -> None:
    # Given cohorts of 18 for a quorum of 12, in thirty versions, each client with its own delay
    summary, seen = simulate(
        tmp_path,
        experiment={"versions": 30},
        participation={"mode": "cohort", "sampling_rate": 0.3, "over_selection": 1.5},
        aggregation={"strategy": "fedbuff", "quorum": 12, "deadline_s": 600.0},
        devices={"delay": "exponential", "delay_s": 5.0},
    )
    traffic = summary["traffic"]
    # Then what arrived is what was counted, and as much again as came too late
    assert traffic["counted"]["messages"] == summary["updates_counted"] == 360
    assert traffic["late"]["messages"] == summary["updates_rejected"]["late"] > 140
    assert seen["arrived"] == 360 + traffic["late"]["messages"]
    assert set(traffic) == {"counted", "late"}
    # And each of them carried its own bytes, and had fetched a model
    assert summary["bytes_down"] == MODEL_BYTES * seen["arrived"]
    each = {name: t["bytes_up"] / t["messages"] for name, t in traffic.items()}
    assert each["late"] == pytest.approx(each["counted"], rel=0.02)
    assert summary["bytes_up"] == sum(t["bytes_up"] for t in traffic.values())
    # And so says what is scraped and what is reported, version by version
    now = TotalsReader(tmp_path).read()
    assert now.arrived.bytes_up + now.besides.bytes_up == summary["bytes_up"]
    run = read_run(tmp_path, "run")
    after_the_last = summary["bytes_up"] + summary["bytes_down"] - run.versions.bytes[-1]
    assert 0 <= after_the_last < 18 * (each["late"] + MODEL_BYTES)
    assert f"{traffic['late']['messages']} late" in facts([run])["sent in vain"][0]


def test_what_is_lost_on_the_way_is_traffic_as_far_as_it_came(tmp_path: Path) -> None:
    # Given devices that lose half of their turns, anywhere
    summary, seen = simulate(
        tmp_path,
        experiment={"versions": 12},
        aggregation={"strategy": "fedbuff", "quorum": 10},
        participation={"concurrency": 10, "assignment_deadline_s": 20.0},
        devices={"dropout": 0.5, "delay": "constant", "delay_s": 5.0},
    )
    traffic = summary["traffic"]
    for where in ("before_training", "after_training", "upload"):
        lost = traffic[f"lost_{where}"]
        assert lost["messages"] == seen[where] > 20
        assert lost["bytes_down"] == MODEL_BYTES * seen[where]
        assert lost["bytes_up"] == (MODEL_BYTES * seen[where] if where == "upload" else 0)


def test_a_model_that_was_fetched_for_a_training_that_failed_is_traffic(tmp_path: Path) -> None:
    summary, _ = simulate(
        tmp_path,
        experiment={"versions": 8, "seed": 1},
        aggregation={"strategy": "fedbuff", "quorum": 10},
    )
    failed = summary["traffic"]["failed"]
    assert failed["messages"] == summary["failures"] > 0
    assert failed["bytes_down"] == MODEL_BYTES * summary["failures"]
