"""Three real nodes: any one of them may die, and the federation goes on by itself.

Exactly-once accounting is what a ledger does, and is proved elsewhere; here it is what the broker
owes it: every confirmed update comes, none is acked away, and somebody leads again in time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from fluffle.broker import AggregatorPort, Broker, Closed, Delivery, Envelope, LeadershipLost
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.broker.topology import Topology
from tests.broker.cluster.nodes import Cluster, Member, running_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

#: Somebody leads, and models and updates pass, after this at the latest.
TAKEOVER_S = 10.0
#: Longer than anything else takes.
PATIENCE_S = 120.0
STARTED = 1_795_410_451_550


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


def model(version: int, epoch: int) -> Envelope:
    order = {"run_started": STARTED, "epoch": epoch, "version": version, "attempt": 0}
    return Envelope(f"model {version}".encode(), "global-model", f"run:v{version}", order)


@dataclass
class Federation:
    """Two aggregators of which one leads, and workers; what was confirmed, and what has come."""

    broker: Broker
    seconds: float = 0.0
    confirmed: list[str] = field(default_factory=list)
    came: list[str] = field(default_factory=list)
    versions: list[tuple[float, int]] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    epoch: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)
    #: What the broker says of itself, where something is missing.
    told: Callable[[], str] = str

    def lead(self) -> None:
        """As the service does: wait for the lead, publish, take updates and ack them."""
        while not self.over.is_set():
            with (
                contextlib.closing(self.broker.aggregator()) as port,
                contextlib.suppress(LeadershipLost),
            ):
                while not self.over.is_set() and not port.lead(1.0):
                    pass
                if not self.over.is_set():
                    self._be_leader(port)

    def _be_leader(self, port: AggregatorPort) -> None:
        self.epoch += 1
        epoch, version = self.epoch, len(self.versions)
        port.consume(20)
        while not self.over.is_set() and epoch == self.epoch:
            version = max(version, len(self.versions))
            port.publish_model(model(version, epoch))
            self.versions.append((time.monotonic(), version))
            port.assign([Envelope(f"turn {version}".encode(), "assignment")], 60)
            delivery: Delivery | None = port.receive(0.5)
            while delivery is not None:
                if not delivery.is_event:
                    self.came.append(delivery.envelope.message_id)
                    port.ack([delivery])
                delivery = port.receive(0.05)

    def work(self, name: str) -> None:
        """Look at models, take turns, and send one update after the other."""
        number = 0
        with contextlib.closing(self.broker.worker(name, 1)) as port:
            while not self.over.is_set():
                newest = port.newest_model()
                if newest is not None:
                    self.seen[name] = max(self.seen.get(name, -1), int(newest.headers["version"]))
                turn = port.receive_assignment(0.1)
                number += 1
                update = Envelope(b"u", "client-update", f"{name}:{number}", {"client": name})
                port.submit(update)
                self.confirmed.append(update.message_id)
                if turn is not None:
                    port.ack(turn)

    def make(self, more: int, within_s: float = PATIENCE_S) -> float:
        """Until so many versions more were made and every worker has one of them: how long."""
        began, wanted = time.monotonic(), len(self.versions) + more
        while len(self.versions) < wanted or min(self.seen.values()) < wanted - more:
            took = time.monotonic() - began
            if took >= within_s:
                print(self.told())
            assert took < within_s, (len(self.versions), wanted, self.seen, self.errors)
            time.sleep(0.02)
        return time.monotonic() - began


@pytest.fixture
def federation(cluster: Cluster) -> Iterator[Federation]:
    for node in cluster.nodes:
        node.start_again()
    one = Federation(RabbitMQBroker(cluster.url, heartbeat_s=5, connect_timeout_s=60))
    one.seen = {"w1": -1, "w2": -1, "w3": -1}
    one.told = cluster.told

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except Closed:
            pass
        except BaseException as error:
            one.errors.append(error)

    jobs: list[Callable[[], None]] = [one.lead, one.lead]
    jobs += [lambda name=name: one.work(name) for name in one.seen]  # type: ignore[misc]
    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    one.make(3)
    wait_until_whole(cluster)
    yield one
    one.over.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert one.errors == []


def wait_until_whole(cluster: Cluster) -> None:
    """One node may die, not a second one before the first has caught up."""
    deadline = time.monotonic() + PATIENCE_S
    while not cluster.whole():
        assert time.monotonic() < deadline, cluster.nodes[0].ctl("list_queues", "name", "online")
        time.sleep(0.5)


def nothing_is_lost(one: Federation) -> None:
    """All that was confirmed until now comes; a copy of it may, which a ledger tells by its id."""
    owed = set(one.confirmed)
    deadline = time.monotonic() + PATIENCE_S
    while not owed <= set(one.came):
        assert time.monotonic() < deadline, sorted(owed - set(one.came))[:10]
        time.sleep(0.1)


def die_and_come_back(one: Federation, node: Member) -> float:
    node.kill()
    took = one.make(2, TAKEOVER_S)
    nothing_is_lost(one)
    node.start()
    one.make(2)
    return took


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_node_may_be_killed(cluster: Cluster, federation: Federation, number: int) -> None:
    # The first is the one that everybody is connected to, as it is the first in the URL
    took = die_and_come_back(federation, cluster.nodes[number])
    print(f"node {number + 1} killed: two versions more after {took:.1f} s")


@pytest.mark.parametrize("queue", ["updates", "assignments", "aggregator"])
def test_the_node_that_leads_a_queue_may_be_killed(
    cluster: Cluster, federation: Federation, queue: str
) -> None:
    node = cluster.leader_of(f"{Topology().federation}.{queue}")
    took = die_and_come_back(federation, node)
    print(f"{node.name}, which led {queue}, killed: two versions more after {took:.1f} s")


def test_nodes_may_be_restarted_one_after_the_other(
    cluster: Cluster, federation: Federation
) -> None:
    for node in cluster.nodes:
        node.terminate()
        federation.make(2)
        node.start()
        wait_until_whole(cluster)
    nothing_is_lost(federation)
