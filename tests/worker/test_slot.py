"""A worker under the real clock lives its clients' devices: it waits, and it loses turns."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.service import AggregatorService
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import Experiment, Message, Plan
from fluffle.worker.devices import Devices
from fluffle.worker.services.worker import WorkerService

pytestmark = pytest.mark.tensorflow


def run(
    folder: Path, simulate_devices: bool = True, **tables: Any
) -> tuple[Ledger, list[Message | None], Plan]:
    """A whole run with one slot in this process; its ledger, and what its turns brought."""
    tables = {
        "task": {"clients": 6},
        "partition": {"examples_per_client": 50},
        "evaluation": {"every_updates": 0},
        **tables,
    }
    experiment = Experiment.model_validate(tables)
    broker, turns = EmbeddedBroker(), []
    worker = WorkerService(
        *(broker.worker("w", 1), "w", 1),
        simulate_devices=simulate_devices,
        on_turn=turns.append,
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    service = AggregatorService(experiment, broker.aggregator(), folder, run_id="run")
    assert service.run() == "finished"
    thread.join()
    return Ledger(folder), turns, Plan.of(experiment, "delta")


def test_delays_and_pauses_are_waited_out(tmp_path: Path) -> None:
    ledger, _, _ = run(
        tmp_path,
        experiment={"versions": 4},
        aggregation={"quorum": 1, "deadline_s": 60.0},
        participation={"pause_s": [0.2, 0.2]},
        devices={"delay": "constant", "delay_s": 0.3, "latency_s": 0.1},
    )
    made = [at for (at,) in ledger.query("SELECT elapsed_s FROM versions ORDER BY version")]
    # One turn takes at least two latencies and the delay; the next begins after the pause. A busy
    # machine may count the first of two updates late.
    assert min(b - a for a, b in pairwise(made[1:])) >= 0.8 * (0.1 + 0.3 + 0.1 + 0.2)


def test_exactly_the_turns_that_the_devices_lose_bring_nothing(tmp_path: Path) -> None:
    ledger, turns, plan = run(
        tmp_path,
        experiment={"versions": 8},
        aggregation={"quorum": 2, "deadline_s": 60.0},
        participation={"assignment_deadline_s": 1.0},
        devices={"dropout": 0.4},
    )
    devices = Devices(plan)
    counted = ledger.query("SELECT client, turn FROM updates WHERE turn > 0")
    assert len(counted) == 16
    assert all(devices.outcome(client, turn).lost_at is None for client, turn in counted)
    assert None in turns
    assert ledger.count("dropouts") > 0
    lost = ledger.query("SELECT assignment_id FROM dropouts")
    outcomes = [
        devices.outcome(client, int(turn)) for _, turn, client in (i.split(":") for (i,) in lost)
    ]
    assert any(outcome.lost_at for outcome in outcomes)


def test_a_plan_cannot_make_a_worker_simulate_that_was_not_told_to(
    tmp_path: Path, said: list[str]
) -> None:
    # Given a run of whose turns most would be lost, and whose clients lie and wait for an hour
    devices = {"dropout": 0.9, "byzantine": 1.0, "delay": "constant", "delay_s": 3600.0}
    tables = {"experiment": {"versions": 2}, "aggregation": {"quorum": 2, "deadline_s": 60.0}}
    # When a worker of its own trains it
    ledger, turns, _ = run(tmp_path / "with", False, **tables, devices=devices)
    # Then it says so once, and everything is as in a run without devices
    (line,) = [line for line in said if "--simulate-devices" in line]
    assert "run run describes devices" in line
    assert None not in turns[:4]
    plain, _, _ = run(tmp_path / "without", False, **tables)
    of_updates = "SELECT client, turn, examples FROM updates WHERE turn > 0 ORDER BY turn"
    assert ledger.query(of_updates) == plain.query(of_updates)
    assert len([line for line in said if "--simulate-devices" in line]) == 1


def test_a_client_that_lies_does_so_where_devices_are_simulated_alone(tmp_path: Path) -> None:
    # Given runs of one client, which is hostile, and of one which is not
    tables = {
        "experiment": {"versions": 1},
        "task": {"clients": 1},
        "aggregation": {"strategy": "fedavg", "quorum": 1, "deadline_s": 60.0},
    }
    lying = {"devices": {"byzantine": 1.0}}
    honest, _, _ = run(tmp_path / "honest", **tables)
    untold, _, _ = run(tmp_path / "untold", False, **tables, **lying)
    told, _, _ = run(tmp_path / "told", **tables, **lying)
    # Then they differ where a run has attached the devices
    of_version = "SELECT weights_sha256 FROM versions WHERE version = 1"
    assert untold.query(of_version) == honest.query(of_version) != told.query(of_version)
