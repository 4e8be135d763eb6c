"""What a member sends does not decide how much memory the aggregator needs."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pika
import pytest

from fluffle.broker.admin.node import Node
from fluffle.broker.topology import UPDATES, Topology
from fluffle.schemas.codec import pack
from tests.integration.processes import Start, Started, wait_for_version, wait_until

pytestmark = pytest.mark.rabbitmq

MB = 1024**2
#: As fp32.
MODEL_MB = 4
EXPERIMENT = """
[task]
name = "digits-lr"
clients = 4
[evaluation]
every_updates = 0
"""


class Federation:
    def __init__(self, start: Start, node: Node, name: str, folder: Path) -> None:
        self.out = folder / "out"
        self._start, self._node, self._names = start, node, Topology(name)
        (folder / "e.toml").write_text(EXPERIMENT)
        self._weights = folder / "weights"
        weights = {"trainable/0": np.zeros(MODEL_MB * MB // 4, np.float32)}
        self._weights.write_bytes(pack({}, weights))
        self._file = folder / "e.toml"

    def aggregator(self) -> Started:
        where = ("--broker", self._node.url, "--federation", self._names.federation)
        one = self._start(
            *("aggregator", self._file, "--out", self.out, "--initial", self._weights, *where)
        )
        wait_for_version(self.out, 0, one)
        # It takes updates once the version is published, which an alarm would keep it from.
        wait_until(lambda: self.count("consumers", UPDATES), one)
        return one

    def send(self, size_mb: int, count: int) -> None:
        """What no aggregator can use, as updates."""
        sent_as = pika.BasicProperties(type="client-update", content_type="application/msgpack")
        with closing(pika.BlockingConnection(pika.URLParameters(self._node.url))) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            for _ in range(count):
                channel.basic_publish(self._names.submit, UPDATES, bytes(size_mb * MB), sent_as)

    def count(self, what: str, queue: str) -> int:
        lines = self._node.ctl("list_queues", "name", what).splitlines()
        told = dict(line.split() for line in lines if line.startswith(self._names.federation))
        return int(told[f"{self._names.federation}.{queue}"])

    def rejected(self) -> int:
        return self.count("messages", "updates.rejected")

    @contextmanager
    def short_of_memory(self) -> Iterator[None]:
        self._node.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        # It looks at its memory every few seconds only.
        wait_until(lambda: "memory" in self._node.ctl("eval", "rabbit_alarm:get_alarms()."))
        try:
            yield
        finally:
            self._node.ctl("set_vm_memory_high_watermark", "0.4")


def peak_mb(one: Started) -> int:
    status = Path(f"/proc/{one.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) // 1024


@pytest.fixture
def members(start: Start, rabbitmq: Node, federation: str, tmp_path: Path) -> Iterator[Federation]:
    yield Federation(start, rabbitmq, federation, tmp_path)
    names = Topology(federation)
    for queue in names.shared:
        rabbitmq.ctl("delete_queue", queue.name)


def test_many_messages_of_the_longest_kind_take_what_is_promised(members: Federation) -> None:
    # Given an aggregator of a small model
    one = members.aggregator()
    before = peak_mb(one)
    # When many messages wait that are just short enough to be looked at, and none can be rejected
    # for a while (the broker is short of memory and takes nothing)
    one.kill(signal.SIGSTOP)
    members.send(19, 30)
    with members.short_of_memory():
        one.kill(signal.SIGCONT)
        wait_until(lambda: members.count("messages_unacknowledged", UPDATES) >= 12, one)
        time.sleep(2.0)  # whatever the broker pushes beyond that
    wait_until(lambda: members.rejected() == 30, one)
    # Then no more of them were in its hands than fit 256 MiB, and one that is put together
    assert peak_mb(one) - before < 256 + 3 * 20


def test_an_aggregator_that_resumes_keeps_no_message_that_is_too_long(members: Federation) -> None:
    # Given a run that was stopped, and a huge message that waits for it
    one = members.aggregator()
    one.kill(signal.SIGTERM)
    one.wait()
    members.send(200, 1)
    # When it is resumed
    two = members.aggregator()
    wait_until(lambda: members.rejected() == 1, two)
    # Then the message was set aside without being held
    assert peak_mb(two) < 200
