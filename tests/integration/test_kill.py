"""kill -9 of an aggregator and of a worker in the middle of a run on RabbitMQ."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from tests.integration.processes import Start, verified, version, wait_for_version

pytestmark = [pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow]


def test_an_aggregator_killed_in_the_middle_is_started_again_and_the_run_goes_on(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    # Given a run of an aggregator, a worker and an evaluator
    out = tmp_path / "out"
    where = ("--broker", rabbitmq.url, "--federation", federation)
    lead = ("aggregator", experiment, *where, "--out", out, "--json")
    aggregator = start(*lead)
    worker = start("worker", *where, "--slots", 2, "--name", "worker")
    start("evaluator", *where)
    # When the aggregator is killed twice, and started again each time
    for at in (5, 15):
        wait_for_version(out, at, aggregator, worker)
        aggregator.kill()
        aggregator.wait()
        aggregator = start(*lead)
    # Then the run finishes, nobody was counted twice, and the worker leaves by itself
    assert aggregator.wait() == 0, aggregator.output
    assert worker.wait() == 0, worker.output
    summary = aggregator.summary()
    assert (summary["versions"], summary["updates_counted"]) == (40, 120)
    assert "resuming at version" in aggregator.output
    verified(start, out)


def test_a_worker_killed_in_the_middle_gives_its_turn_back(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    # Given two workers
    out = tmp_path / "out"
    where = ("--broker", rabbitmq.url, "--federation", federation)
    aggregator = start(
        *("aggregator", experiment, *where, "--out", out, "--json"),
        *("--set", "evaluation.every_updates=0"),
    )
    workers = [start("worker", *where, "--name", f"worker-{i}") for i in range(2)]
    # When one is killed, and started again under the same name
    wait_for_version(out, 5, aggregator, *workers)
    workers[0].kill()
    workers[0].wait()
    at = version(out)
    wait_for_version(out, at + 3, aggregator, workers[1])
    workers[0] = start("worker", *where, "--name", "worker-0")
    # Then the run finishes without a dropout: the turn came back at once
    assert aggregator.wait() == 0, aggregator.output
    summary = aggregator.summary()
    assert (summary["versions"], summary["dropouts"]) == (40, 0)
    verified(start, out)
