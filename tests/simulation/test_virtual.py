"""Runs under the virtual clock: the same bytes however they are executed, and time as modelled."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.verify import verify
from fluffle.schemas import Experiment, UserError
from fluffle.simulation.virtual import VirtualRun

pytestmark = pytest.mark.tensorflow

#: Dropout layers, shuffling, an optimizer with state, lost turns, stragglers, slow networks.
EVERYTHING: dict[str, Any] = {
    "experiment": {"versions": 12, "seed": 7},
    "task": {"clients": 30},
    "partition": {"kind": "dirichlet", "alpha": 0.5, "examples_per_client": 200},
    "training": {"epochs": 2, "batch_size": 32},
    "participation": {"concurrency": 12, "assignment_deadline_s": 60.0},
    "aggregation": {"quorum": 4, "deadline_s": 30.0},
    "evaluation": {"every_updates": 15, "examples": 500},
    "devices": {
        **{"availability": "on_off", "on_s": 60.0, "off_s": 20.0},
        **{"dropout": 0.2, "stragglers": 0.5, "delay": "half_normal", "delay_s": 5.0},
        **{"seconds_per_example": 0.01, "latency_s": 0.2, "upload_bytes_per_s": 1e6},
    },
}


def simulate(folder: Path, slots: int = 2, **tables: Any) -> VirtualRun:
    experiment = Experiment.model_validate(tables)
    virtual = VirtualRun(experiment, folder, run_id="run", slots=slots)
    assert virtual.run() == "finished"
    return virtual


def versions(folder: Path) -> list[tuple[str, float]]:
    ledger = Ledger(folder)
    assert verify(ledger) == []
    rows = ledger.query("SELECT weights_sha256, elapsed_s FROM versions ORDER BY version")
    ledger.close()
    return [(sha, at) for sha, at in rows]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def log_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "events.jsonl").read_bytes()).hexdigest()


def test_the_number_of_slots_changes_no_byte_and_no_event(tmp_path: Path) -> None:
    # Given one experiment with everything that could make a difference
    for name, slots in (("one", 1), ("two", 2), ("four", 4), ("again", 2)):
        simulate(tmp_path / name, slots, **EVERYTHING)
    # Then every version and the whole log are the same
    reference = versions(tmp_path / "one")
    assert len(reference) == 13
    assert len({sha for sha, _ in reference}) == 13
    for name in ("two", "four", "again"):
        assert versions(tmp_path / name) == reference
        assert log_sha256(tmp_path / name) == log_sha256(tmp_path / "one")


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    tables = {**EVERYTHING, "experiment": {"versions": 2, "seed": 7}}
    simulate(tmp_path / "a", **tables)
    simulate(tmp_path / "b", **{**tables, "experiment": {"versions": 2, "seed": 8}})
    assert versions(tmp_path / "a")[0] != versions(tmp_path / "b")[0]


def test_time_is_the_sum_of_what_a_turn_is_made_of(tmp_path: Path) -> None:
    # Given one client whose every turn takes 2 + 100 x 1 x 0.03 + two latencies of 0.5 seconds
    virtual = simulate(
        tmp_path,
        experiment={"versions": 3},
        task={"clients": 1},
        partition={"examples_per_client": 100},
        aggregation={"quorum": 1, "deadline_s": 1000.0},
        evaluation={"every_updates": 0},
        participation={"pause_s": [4.0, 4.0]},
        devices={
            **{"delay": "constant", "delay_s": 2.0, "seconds_per_example": 0.03},
            **{"latency_s": 0.5},
        },
    )
    # Then versions come after one turn, and after one pause and one turn each
    times = [at for _, at in versions(tmp_path)]
    assert times == pytest.approx([0.0, 6.0, 16.0, 26.0])
    assert virtual.clock.now == pytest.approx(26.0)


def test_lost_turns_are_dropouts_when_their_deadline_passes(tmp_path: Path) -> None:
    simulate(
        tmp_path,
        experiment={"versions": 10},
        task={"clients": 10},
        partition={"examples_per_client": 50},
        participation={"assignment_deadline_s": 20.0},
        aggregation={"deadline_s": 1000.0},
        evaluation={"every_updates": 0},
        devices={"dropout": 0.5, "delay": "constant", "delay_s": 1.0},
    )
    lost = [e for e in events(tmp_path) if e["event"] == "lost"]
    ledger = Ledger(tmp_path)
    assert len(lost) >= 5
    assert {e["where"] for e in lost} == {"before_training", "after_training", "upload"}
    due = [e for e in lost if e["at"] + 20 < float(ledger.meta["elapsed_s"])]
    assert len(due) <= ledger.count("dropouts") <= len(lost)
    ledger.close()


def test_the_deadline_closes_a_buffer_in_virtual_time(tmp_path: Path) -> None:
    simulate(
        tmp_path,
        experiment={"versions": 2},
        task={"clients": 4},
        partition={"examples_per_client": 50},
        participation={"mode": "cohort"},
        aggregation={"strategy": "fedavg", "deadline_s": 5.0},
        evaluation={"every_updates": 0},
        devices={"delay": "uniform", "delay_s": 5.0, "delay_of": "client"},
    )
    assert [at for _, at in versions(tmp_path)] == pytest.approx([0.0, 5.0, 10.0])


def test_nobody_ever_available_is_said_instead_of_waiting_for_ever(tmp_path: Path) -> None:
    tables = {
        "task": {"clients": 4},
        "experiment": {"max_minutes": 10.0},
        "devices": {"availability": "trace", "trace": "99 0 10"},
    }
    experiment = Experiment.model_validate(tables)
    virtual = VirtualRun(experiment, tmp_path / "out", run_id="run", slots=1)
    assert virtual.run() == "finished"
    assert virtual.clock.now == pytest.approx(600.0, abs=120)
    ledger = Ledger(tmp_path / "out")
    assert ledger.latest_version() == 0


def test_more_clients_than_examples_is_one_line(tmp_path: Path) -> None:
    experiment = Experiment.model_validate({"task": {"clients": 70_000}})
    with pytest.raises(UserError, match="clients"):
        VirtualRun(experiment, tmp_path, run_id="run", slots=1).run()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    # Given a disk that takes nothing of what the simulation writes
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    code = (
        "import sys; from pathlib import Path; from fluffle.display import Display\n"
        "from fluffle.running import run_virtual\n"
        "from fluffle.schemas import Experiment, UserError\n"
        "experiment = Experiment.model_validate({'task': {'name': 'digits-lr'}})\n"
        "try: run_virtual(experiment, Path(sys.argv[1]), Display('full', quiet=True), slots=1)\n"
        "except UserError as error: print(error)"
    )
    # When it runs, in a process whose TensorFlow nobody has set up yet
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    # Then
    assert "No space left on device" in done.stdout, done.stderr
    assert "make room" in done.stdout


def test_a_deterministic_cohort_outlives_the_dropouts_of_its_devices(tmp_path: Path) -> None:
    # A turn that is given again is another draw of the device's: else it would be lost for ever
    simulate(
        tmp_path,
        experiment={"versions": 4},
        task={"name": "digits-lr", "clients": 6},
        participation={"mode": "cohort", "assignment_deadline_s": 60.0},
        aggregation={"strategy": "fedavg", "deterministic": True, "on_deadline": "extend"},
        devices={"dropout": 0.5},
        evaluation={"every_updates": 0},
    )
    ledger = Ledger(tmp_path)
    assert ledger.count("updates WHERE version > 0") == 4 * 6
    assert ledger.count("dropouts") > 0
    ledger.close()
