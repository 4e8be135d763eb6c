"""Hostile messages against a live run on RabbitMQ, with real workers beside.

FLUFFLE_HOSTILE sets how many (``make fuzz-live`` sends 10,000).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import statistics
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pika
import psutil
import pytest

from fluffle.broker.admin.node import Node
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.broker.topology import ASSIGNMENTS, EVENTS, UPDATES, Topology
from fluffle.schemas import GlobalModel, decode, encode
from fluffle.schemas.codec import MAX_MESSAGE_BYTES
from tests.fuzz.hostile import Attacker, Hostile, RawProperties, said
from tests.integration.processes import (
    PATIENCE_S,
    Start,
    Started,
    verified,
    version,
    wait_for_version,
)

pytestmark = [
    pytest.mark.rabbitmq,
    pytest.mark.tensorflow,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]

MESSAGES = int(os.environ.get("FLUFFLE_HOSTILE", "2000"))
#: Messages of 512 MiB.
LARGE = 2
MB = 10**6
#: How much more memory the aggregator may have in the last third of the attack than in the first.
GROWTH_MB = 32.0

EXPERIMENT = """
[experiment]
name = "attacked"
versions = 1000000
[task]
name = "digits-lr"
clients = 8
[training]
epochs = 1
[aggregation]
quorum = 3
keep_versions = 2
[evaluation]
every_updates = 0
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "attacked.toml"
    path.write_text(EXPERIMENT)
    return path


class Memory:
    """What a process holds, twice a second."""

    def __init__(self, one: Started) -> None:
        self.mb: list[float] = []
        self._process = psutil.Process(one.process.pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> list[float]:
        self._over.set()
        self._thread.join()
        return self.mb

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.mb.append(self._process.memory_info().rss / MB)


def newest_model(url: str, federation: str) -> GlobalModel:
    """As any worker sees it."""
    port = RabbitMQBroker(url, federation).worker("attacker", 0)
    try:
        envelope = port.wait_model(None, PATIENCE_S)
    finally:
        port.close()
    assert envelope is not None
    model = decode(envelope.body)
    assert isinstance(model, GlobalModel)
    return model


def attack(url: str, federation: str, messages: list[tuple[str, Hostile]]) -> None:
    """Publish as fast as the broker takes them."""
    with closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for key, one in messages:
            exchange = Topology(federation).submit
            channel.basic_publish(exchange, key, one.body, one.properties, mandatory=True)


def rejections(folder: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 of a message -> why it was rejected, and how often."""
    with closing(sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT message_sha256, reason, times FROM rejections")
        return {sha: (reason, times) for sha, reason, times in rows}


def total(folder: Path) -> int:
    return sum(times for _, times in rejections(folder).values())


def copies(url: str, federation: str) -> int:
    """How many lie in the queue of the rejected."""
    with closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        name = Topology(federation).rejected.name
        return int(connection.channel().queue_declare(name, passive=True).method.message_count)


def test_hostile_messages_are_rejected_and_counted_and_the_run_goes_on(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    # Given a run with two workers
    out = tmp_path / "out"
    where = ("--broker", rabbitmq.url, "--federation", federation)
    lead = ("aggregator", experiment, *where, "--out", out, "--json")
    aggregator = start(*lead)
    workers = [start("worker", *where, "--name", f"worker-{i}", "--stay") for i in range(2)]
    wait_for_version(out, 3, aggregator, *workers)
    # When somebody with a worker's rights sends thousands of hostile messages, some of them as
    # events, and one good update a hundred times
    attacker = Attacker(newest_model(rabbitmq.url, federation), seed=7)
    hostile = list(attacker.messages(MESSAGES))
    events = [(EVENTS, one) for one in Attacker(attacker.model, seed=8).messages(MESSAGES // 10)]
    good = encode(attacker.good())
    replayed = [(UPDATES, said(good)) for _ in range(100)]
    before, memory, started = version(out), Memory(aggregator), time.monotonic()
    attack(rabbitmq.url, federation, [*((UPDATES, one) for one in hostile), *events, *replayed])
    sent_s = time.monotonic() - started
    while total(out) < MESSAGES:
        assert aggregator.process.poll() is None, aggregator.output
        assert time.monotonic() - started < 1500, (total(out), aggregator.output)
        time.sleep(0.5)
    rejected_s, used = time.monotonic() - started, memory.stop()
    print(f"{MESSAGES} sent in {sent_s:.1f} s, rejected after {rejected_s:.1f} s; "
          f"versions {before} to {version(out)}; memory {used[0]:.0f} to {used[-1]:.0f} MB, "
          f"peak {max(used):.0f} MB")  # fmt: skip
    # Then the run has gone on meanwhile, and goes on
    assert version(out) > before
    wait_for_version(out, version(out) + 3, aggregator, *workers)
    # And each was rejected once for every time that it was sent, for one of its reasons, and the
    # events for none
    why = {hashlib.sha256(one.body).hexdigest(): one.reasons for one in hostile}
    sent = Counter(hashlib.sha256(one.body).hexdigest() for one in hostile)
    found = rejections(out)
    assert {sha: times for sha, (_, times) in found.items()} == sent
    assert {sha: r for sha, (r, _) in found.items() if r not in why[sha]} == {}
    # And a person finds a copy of each
    assert copies(rabbitmq.url, federation) == MESSAGES
    # And memory has stayed flat, and the log readable
    third = len(used) // 3
    growth = statistics.median(used[-third:]) - statistics.median(used[:third]) if third else 0.0
    assert growth < GROWTH_MB, used
    assert aggregator.output.count("rejected a message") <= 40, aggregator.output
    # And the workers are as they were, and the run, told to stop soon, finishes
    assert all(one.process.poll() is None for one in workers)
    aggregator.kill(15)
    aggregator.wait()
    last = version(out) + 5
    finishing = start(*lead, "--set", f"experiment.versions={last}")
    assert finishing.wait() == 0, finishing.output
    summary = finishing.summary()
    assert summary["versions"] == last
    assert summary["duplicates"] >= 99
    assert sum(summary["updates_rejected"].values()) == MESSAGES
    verified(start, out)


def test_what_nobody_but_an_aggregator_may_send_to_workers_ends_none_of_them(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    # Given a run with a worker and an evaluator
    out = tmp_path / "out"
    where = ("--broker", rabbitmq.url, "--federation", federation)
    lead = ("aggregator", experiment, *where, "--out", out, "--json")
    aggregator = start(*lead, "--set", "evaluation.every_updates=30")
    team = [start(role, *where, "--name", f"{role}-0") for role in ("worker", "evaluator")]
    wait_for_version(out, 3, aggregator, *team)
    # When somebody who has all rights floods the models, the turns and the mailboxes
    names = Topology(federation)
    listed = rabbitmq.ctl("list_queues", "name").split()
    mailboxes = [name for name in listed if name.startswith(f"{federation}.worker.")]
    assert len(mailboxes) == 2
    exchanges = [(names.global_model, ""), (names.assign, ASSIGNMENTS)]
    exchanges += [("", mailbox) for mailbox in mailboxes]
    attacker = Attacker(newest_model(rabbitmq.url, federation), seed=9)
    before = version(out)
    with closing(pika.BlockingConnection(pika.URLParameters(rabbitmq.url))) as connection:
        channel = connection.channel()
        for number, one in enumerate(attacker.messages(MESSAGES // 2)):
            exchange, key = exchanges[number % len(exchanges)]
            channel.basic_publish(exchange, key, one.body, dated(one, attacker.model))
    # Then the run goes on with the same processes
    wait_for_version(out, max(before, version(out)) + 10, aggregator, *team)
    # And finishes
    aggregator.kill(15)
    aggregator.wait()
    last = version(out) + 5
    more = ("--set", "evaluation.every_updates=30", "--set", f"experiment.versions={last}")
    finishing = start(*lead, *more)
    assert finishing.wait() == 0, finishing.output
    assert [one.wait() for one in team] == [0, 0], [one.output for one in team]
    verified(start, out)


def dated(one: Hostile, model: GlobalModel) -> pika.BasicProperties:
    """As from just before the model: what says that it is newest displaces it until the next."""
    if isinstance(one.properties, RawProperties):
        return one.properties
    run = model.run
    order = {"run_started": run.run_started, "epoch": run.epoch, "version": model.version - 1}
    headers = {**(one.properties.headers or {}), **order, "attempt": 0}
    return pika.BasicProperties(
        content_type=one.properties.content_type, type=one.properties.type, headers=headers
    )


def test_messages_of_the_largest_size_fill_no_memory(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    # Given a run, and a broker that takes what RabbitMQ takes at most
    out = tmp_path / "out"
    where = ("--broker", rabbitmq.url, "--federation", federation)
    aggregator = start("aggregator", experiment, *where, "--out", out)
    worker = start("worker", *where)
    wait_for_version(out, 3, aggregator, worker)
    memory = Memory(aggregator)
    # When somebody sends more than that
    with pytest.raises(pika.exceptions.AMQPError, match=r"larger than( configured)? max size"):
        attack(rabbitmq.url, federation, [(UPDATES, said(bytes(MAX_MESSAGE_BYTES + 1)))])
    # Then the broker takes it not, and the aggregator hears nothing of it
    assert total(out) == 0
    # When somebody sends messages of just that, as updates and as events
    large = [said(bytes([number]) * MAX_MESSAGE_BYTES) for number in range(LARGE)]
    attack(rabbitmq.url, federation, [(key, one) for one in large for key in (UPDATES, EVENTS)])
    deadline = time.monotonic() + 2 * PATIENCE_S
    while total(out) < LARGE:
        assert time.monotonic() < deadline, aggregator.output
        time.sleep(0.5)
    # Then each is rejected by its hash, and has never been in memory as a whole
    shas = {hashlib.sha256(one.body).hexdigest() for one in large}
    assert rejections(out) == dict.fromkeys(shas, ("too_large", 1))
    used = memory.stop()
    print(f"memory {used[0]:.0f} MB before, {max(used):.0f} MB at its peak")
    assert max(used) - used[0] < 64, used
    # And the run goes on
    wait_for_version(out, version(out) + 3, aggregator, worker)
