"""What clients keep, on RabbitMQ: through kills, shared folders, and where nothing is shared."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.broker.admin.node import Node
from fluffle.schemas import group
from fluffle.worker.services.client_state import ClientStates
from tests.integration.processes import Start, verified, wait_for_version

pytestmark = [pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow]

CLIENTS = 10
SCAFFOLD = (
    *("--set", "aggregation.strategy=scaffold", "--set", "evaluation.every_updates=0"),
    *("--set", "training.optimizer=sgd", "--set", "training.learning_rate=0.05"),
)


def assert_c_is_the_mean(out: Path, folder: Path) -> None:
    """Of the control variates that belong to the clients' last updates that were counted."""
    ledger, states = Ledger(out), ClientStates(folder, 0)
    names, state = ledger.client_states(), ledger.load().state
    assert state is not None
    own = []
    for client in names:
        kept = states.load(ledger.meta["run_id"], client, names[client])
        assert kept is not None
        own.append(group("control", kept))
    for i, c in enumerate(group("server/control", state)):
        mean = np.sum([control[i].astype(float) for control in own], axis=0) / CLIENTS
        np.testing.assert_allclose(c, mean, atol=1e-6)
        assert np.abs(c).max() > 1e-5


def test_c_is_the_mean_of_what_clients_keep_through_any_kill(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    # Given SCAFFOLD on two workers that share a folder, with more in flight than they have slots
    out, folder = tmp_path / "out", tmp_path / "states"
    where = ("--broker", rabbitmq.url, "--federation", federation)
    lead = ("aggregator", experiment, *where, "--out", out, "--json", *SCAFFOLD)
    work = ("worker", *where, "--state", folder, "--slots", 2, "--name")
    aggregator = start(*lead)
    workers = [start(*work, f"worker-{i}") for i in range(2)]
    # When workers and the aggregator are killed in the middle of their work
    for at, victim in ((6, 0), (14, 1), (22, 0)):
        wait_for_version(out, at, aggregator)
        workers[victim].kill()
        workers[victim].wait()
        workers[victim] = start(*work, f"worker-{victim}")
        if victim == 1:
            aggregator.kill()
            aggregator.wait()
            aggregator = start(*lead)
    assert aggregator.wait() == 0, aggregator.output
    for worker in workers:
        worker.kill(signal.SIGTERM)  # one that came back after the end waits for the next run
        worker.wait()
        assert "starts anew" not in worker.output
    verified(start, out)
    # Then the server's control variate is still the mean of all clients'
    assert_c_is_the_mean(out, folder)


def test_an_embedded_run_that_was_stopped_goes_on_with_what_clients_keep(
    start: Start, experiment: Path, tmp_path: Path
) -> None:
    # Given a run in one process, whose clients' states are in its memory
    out = tmp_path / "out"
    run = ("run", experiment, "--out", out, "--slots", 2, "--json", *SCAFFOLD)
    first = start(*run)
    wait_for_version(out, 8, first)
    # When it is stopped, and started again
    first.kill(signal.SIGINT)
    assert first.wait() == 130, first.output
    again = start(*run)
    assert again.wait() == 0, again.output
    # Then nobody started anew, and c is the mean of what clients keep
    assert "starts anew" not in again.output
    assert_c_is_the_mean(out, out / "clients")


def test_workers_that_share_nothing_say_so_and_go_on(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    where = ("--broker", rabbitmq.url, "--federation", federation)
    fewer = ("--set", "experiment.versions=15", "--out", tmp_path / "out", "--json")
    aggregator = start("aggregator", experiment, *where, *fewer, *SCAFFOLD)
    workers = [
        start("worker", *where, "--name", f"worker-{i}", "--state", tmp_path / str(i))
        for i in range(2)
    ]
    assert aggregator.wait() == 0, aggregator.output
    said = ""
    for worker in workers:
        assert worker.wait() == 0, worker.output
        said += worker.output
    assert "but what it kept is not here: it starts anew (workers that share" in said
    assert aggregator.summary()["updates_rejected"] == {}
