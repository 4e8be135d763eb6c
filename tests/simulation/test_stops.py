"""Trainings that stop when their base has become too old (Ringmaster's Algorithm 5; stragglers)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.report.data import read_runs
from fluffle.schemas import Experiment
from tests.simulation.pull import simulate

#: Five clients, each of a speed of its own; R = 3.
RINGMASTER: dict[str, Any] = {
    "experiment": {"versions": 40, "seed": 5},
    "participation": {"concurrency": 5, "stop_stale": True, "assignment_deadline_s": 600.0},
    "aggregation": {"strategy": "ringmaster", "delay_threshold": 3, "deadline_s": 1000.0},
    "devices": {"delay": "uniform", "delay_s": 5.0, "delay_of": "client"},
}


def reasons(folder: Path) -> dict[str, int]:
    ledger = LedgerReader(folder / "run")
    found = dict(ledger.query("SELECT reason, SUM(times) FROM rejections GROUP BY reason"))
    ledger.close()
    return found


def test_ringmaster_stops_what_is_r_versions_old_and_starts_anew_from_the_newest(
    tmp_path: Path, monkeypatch: Any
) -> None:
    # Given Ringmaster with stops, Algorithm 5
    _, events = simulate(tmp_path / "with", monkeypatch, task={"clients": 5}, **RINGMASTER)
    # Then at every moment of the run each training under way is of a base less than R versions old
    version, bases, stopped = 0, {}, 0
    for number, event in enumerate(events):
        match event["event"]:
            case "version":
                version = event["version"]
            case "start":
                assert event["version"] == version
                bases[event["client"]] = event["version"]
            case "arrived":
                assert version - bases.pop(event["client"]) < 3
            case "stopped":
                # And what stops is R old at that very moment, and goes on with the newest at once
                assert version - bases[event["client"]] >= 3
                again = next(
                    e
                    for e in events[number + 1 :]
                    if e["event"] == "start" and e["client"] == event["client"]
                )
                assert (again["at"], again["turn"]) == (event["at"], event["turn"])
                stopped += 1
    assert stopped > 3
    assert reasons(tmp_path / "with") == {}
    # And without stops, Algorithm 4, as much is trained in vain and ignored when it comes
    without = {**RINGMASTER, "participation": {"concurrency": 5}}
    _, events = simulate(tmp_path / "without", monkeypatch, task={"clients": 5}, **without)
    assert Counter(e["event"] for e in events)["stopped"] == 0
    assert reasons(tmp_path / "without")["too_stale"] > 0


def test_stops_are_the_same_on_any_number_of_slots(tmp_path: Path, monkeypatch: Any) -> None:
    runs = [
        simulate(tmp_path / f"{n}", monkeypatch, n, task={"clients": 5}, **RINGMASTER)
        for n in (1, 3)
    ]
    assert runs[0] == runs[1]


def test_stragglers_of_a_cohort_stop_with_its_version_and_are_free_for_the_next(
    tmp_path: Path, monkeypatch: Any
) -> None:
    # Given cohorts of all four clients that are over with the first two updates
    tables: dict[str, Any] = {
        "experiment": {"versions": 6},
        "participation": {"mode": "cohort", "stop_stale": True},
        "aggregation": {"strategy": "fedavg", "quorum": 2, "deadline_s": 1000.0},
        "devices": {"delay": "uniform", "delay_s": 5.0, "delay_of": "turn"},
    }
    end, events = simulate(tmp_path / "with", monkeypatch, task={"clients": 4}, **tables)
    # Then every version begins with all four, at the moment when the one before it was over
    starts = Counter(e["at"] for e in events if e["event"] == "start")
    assert set(starts.values()) == {4}
    assert list(starts) == [e["at"] for e in events if e["event"] == "version"][:-1]
    # And two trainings of each have stopped, but for the last
    assert Counter(e["event"] for e in events)["stopped"] == 2 * 6
    # And without stops stragglers are busy, and rounds take longer
    tables["participation"] = {"mode": "cohort"}
    longer, _ = simulate(tmp_path / "without", monkeypatch, task={"clients": 4}, **tables)
    assert longer > end
    # And the report knows what stopped, and what it had fetched
    (run,) = read_runs([tmp_path / "with" / "run"])
    assert run.turns is not None
    assert Counter(run.turns.outcome.tolist())["stopped"] == 12
    assert run.traffic["stopped"].bytes_down > 0


def test_stops_need_a_bound() -> None:
    with pytest.raises(ValueError, match=r"stop_stale needs aggregation\.max_staleness"):
        Experiment.model_validate({"participation": {"stop_stale": True}})
