"""Who is told to stop while the broker takes nothing leaves all the same, and nothing is lost."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pika
import pytest

from fluffle.broker.admin.node import Node
from fluffle.broker.topology import Topology
from tests.integration.processes import (
    Start,
    verified,
    version,
    wait_for_version,
    wait_until,
)

pytestmark = [pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow]

EXPERIMENT = """
[experiment]
name = "leaving"
versions = 1000000
[task]
name = "digits-lr"
clients = 6
[participation]
concurrency = 6
[aggregation]
quorum = 1
[evaluation]
every_updates = 0
"""

#: While it lasts, the broker takes no update; what a worker says then.
Trouble = Callable[[Node, str], AbstractContextManager[str]]


@contextmanager
def full(node: Node, federation: str) -> Iterator[str]:
    """The queue holds one update and no more: a second one is refused."""
    limit = '{"max-length-bytes": 1}'
    node.ctl("set_policy", "--apply-to", "queues", federation, f"^{federation}.updates$", limit)
    try:
        yield "the queue is full"
    finally:
        node.ctl("clear_policy", federation)


@contextmanager
def out_of_memory(node: Node, federation: str) -> Iterator[str]:
    """The broker reads nothing from who has published."""
    node.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        yield "has no memory or disk left"
    finally:
        node.ctl("set_vm_memory_high_watermark", "0.4")


def waiting(node: Node, federation: str) -> int:
    """How many turns nobody has."""
    with closing(pika.BlockingConnection(pika.URLParameters(node.url))) as connection:
        queue = Topology(federation).assignments.name
        return int(connection.channel().queue_declare(queue, passive=True).method.message_count)


def turns(node: Node, federation: str) -> set[str]:
    """Those turns. Each look counts as a delivery of all of them."""
    found = set()
    with closing(pika.BlockingConnection(pika.URLParameters(node.url))) as connection:
        channel = connection.channel()
        while (got := channel.basic_get(Topology(federation).assignments.name))[0] is not None:
            found.add(str(got[1].message_id))
    return found


@pytest.mark.parametrize("takes_nothing", [full, out_of_memory])
def test_a_worker_whose_update_is_not_taken_leaves_when_it_is_told_to(
    start: Start, rabbitmq: Node, federation: str, tmp_path: Path, takes_nothing: Trouble
) -> None:
    # Given a run whose aggregator is gone, with turns left and a broker that takes no updates
    file, out, journal = (tmp_path / name for name in ("experiment.toml", "out", "journal"))
    file.write_text(EXPERIMENT)
    where = ("--broker", rabbitmq.url, "--federation", federation)
    lead = ("aggregator", file, *where, "--out", out)
    first, worker = start(*lead), start("worker", *where, "--journal", journal)
    wait_for_version(out, 2, first, worker)
    worker.kill(signal.SIGSTOP)
    wait_until(lambda: waiting(rabbitmq, federation) > 2, first, worker)
    first.kill()
    first.wait()
    with takes_nothing(rabbitmq, federation) as says:
        worker.kill(signal.SIGCONT)
        wait_until(lambda: says in worker.output, worker)
        # When the worker is told to stop
        worker.kill(signal.SIGTERM)
        # Then it leaves as ever, and says in one line what was not confirmed
        assert worker.wait() == 0, worker.output
    said = [line.split(" ", 1)[1] for line in worker.output.splitlines()]
    assert said[-2:] == ["stopped before the broker had confirmed the last update", "done"]
    assert "Traceback" not in worker.output
    # And the turn is there for another
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    sent, confirmed = (
        {line["update_id"] for line in lines if line["what"] == what}
        for what in ("sending", "confirmed")
    )
    assert len(sent - confirmed) == 1
    assert sent - confirmed <= turns(rabbitmq, federation)
    # So that the run goes on when somebody leads it again
    again = start(*lead, "--set", f"experiment.versions={version(out) + 3}")
    other = start("worker", *where)
    assert again.wait() == 0, (again.output, other.output)
    verified(start, out)


def test_an_aggregator_whose_model_is_not_taken_leaves_when_it_is_told_to(
    start: Start, rabbitmq: Node, federation: str, tmp_path: Path
) -> None:
    # Given an aggregator that waits for the broker to take a version
    file, out = tmp_path / "experiment.toml", tmp_path / "out"
    file.write_text(EXPERIMENT)
    where = ("--broker", rabbitmq.url, "--federation", federation)
    lead = ("aggregator", file, *where, "--out", out)
    first, worker = start(*lead), start("worker", *where)
    wait_for_version(out, 2, first, worker)
    with out_of_memory(rabbitmq, federation) as says:
        wait_until(lambda: says in first.output, first, worker)
        # When it is told to stop
        first.kill(signal.SIGTERM)
        # Then it leaves as ever, and says so
        assert first.wait() == 130, first.output
    assert "stopped before the broker had taken what was sent" in first.output
    assert "Traceback" not in first.output
    # And the next one goes on where it was
    again = start(*lead, "--set", f"experiment.versions={version(out) + 3}")
    assert again.wait() == 0, (again.output, worker.output)
    verified(start, out)
