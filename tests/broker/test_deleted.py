"""Somebody deletes or unbinds a part of a federation at work: it is made again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.service import AggregatorService
from fluffle.aggregator.verify import verify
from fluffle.broker import Envelope
from fluffle.broker.admin.inspection import inspect_federation
from fluffle.broker.topology import UPDATES, Topology
from tests.aggregator.test_service import Clients, experiment
from tests.broker.conftest import PATIENCE_S, STARTED, Ports, RabbitMQHarness

pytestmark = pytest.mark.rabbitmq

#: What is deleted; "unbound" ones are queues that lose their binding.
EXCHANGES = ("submit", "global-model", "assign", "dead-letter")
QUEUES = ("updates", "assignments", "events", "latest-model", "updates.rejected", "mailbox")
UNBOUND = ("unbound updates", "unbound assignments", "unbound latest-model", "unbound mailbox")

Until = Callable[[Callable[[], bool]], None]


class Vandal:
    """Somebody with all rights."""

    def __init__(self, rabbit: RabbitMQHarness) -> None:
        self._rabbit = rabbit
        self._names = rabbit.topology

    def strike(self, what: str) -> None:
        mailbox = self._mailbox()
        with closing(self._rabbit.connect()) as connection:
            channel = connection.channel()
            name = f"{self._names.federation}.{what.removeprefix('unbound ')}"
            if what in EXCHANGES:
                channel.exchange_delete(name)
            elif what == "mailbox":
                self._rabbit.node.ctl("delete_queue", mailbox)
            elif what == "unbound mailbox":
                self._unbind(mailbox)
            elif what in UNBOUND:
                queue = next(q for q in self._names.shared if q.name == name)
                channel.queue_unbind(name, queue.exchange, queue.key)
            else:
                channel.queue_delete(name)

    def _mailbox(self) -> str:
        lines = self._rabbit.node.ctl("list_queues", "--no-table-headers", "name").splitlines()
        return next(q for q in lines if q.startswith(f"{self._names.federation}.worker."))

    def _unbind(self, mailbox: str) -> None:
        resource = 'rabbit_misc:r(<<"/">>,{kind},<<"{name}">>)'
        source = resource.format(kind="exchange", name=self._names.global_model)
        target = resource.format(kind="queue", name=mailbox)
        self._rabbit.node.ctl(
            "eval",
            f"rabbit_binding:remove({{binding,{source},<<>>,{target},[]}},"
            ' fun(_, _) -> ok end, <<"op">>).',
        )


@pytest.mark.parametrize("what", [*EXCHANGES, *QUEUES, *UNBOUND])
def test_what_is_deleted_is_made_again(
    rabbit: RabbitMQHarness,
    ports: Ports,
    model: Callable[..., Envelope],
    update: Callable[..., Envelope],
    until: Until,
    what: str,
) -> None:
    # Given a leader and a worker at work
    leader, worker = ports.leader(rabbit.broker), ports.worker(rabbit.broker)
    leader.consume(10)
    leader.publish_model(model(0))
    assert worker.wait_model(None, PATIENCE_S) is not None
    leader.publish_model(model(1))
    until(lambda: worker._late.channel is None)  # what comes now comes by the mailbox
    # When somebody deletes a part of it
    Vandal(rabbit).strike(what)
    # Then models arrive again, at those who are there and those who come
    version = 1

    def arrives() -> bool:
        nonlocal version
        version += 1
        leader.publish_model(model(version))
        return worker.wait_model((STARTED, 1, version - 1, 0), 0.5) is not None

    until(arrives)
    until(lambda: bindings(rabbit) >= expected(rabbit.topology))
    leader.publish_model(model(version + 1))
    late = ports.worker(rabbit.broker, "late")
    assert late.wait_model((STARTED, 1, version, 0), PATIENCE_S) is not None
    # And turns, updates and what is rejected
    leader.assign([Envelope(b"turn")], 60)
    turn = worker.receive_assignment(1.0) or late.receive_assignment(PATIENCE_S)
    assert turn is not None
    for port in (worker, late):
        port.submit(update("u"))
        got = leader.receive(PATIENCE_S)
        assert got is not None
        leader.reject(got, "late")
    assert len(rabbit.rejected()) == 2


def bindings(rabbit: RabbitMQHarness) -> set[tuple[str, ...]]:
    lines = rabbit.node.ctl("list_bindings", "--no-table-headers", "source_name",
                            "destination_name", "routing_key").splitlines()  # fmt: skip
    return {tuple(line.split("\t")) for line in lines}


def expected(names: Topology) -> set[tuple[str, ...]]:
    return {(str(queue.exchange), queue.name, queue.key) for queue in names.shared}


def test_a_worker_says_what_is_missing_and_when_it_is_back(
    rabbit: RabbitMQHarness, ports: Ports, update: Callable[..., Envelope], until: Until
) -> None:
    # Given a worker that has submitted, and a leader that is gone
    leader, worker = ports.leader(rabbit.broker), ports.worker(rabbit.broker)
    worker.submit(update("u"))
    leader.close()
    # When somebody deletes the exchange that it submits to, and then unbinds the queue
    submit = rabbit.topology.submit
    with closing(rabbit.connect()) as connection:
        connection.channel().exchange_delete(submit)
    said = threading.Thread(target=worker.submit, args=(update("v"),))
    said.start()
    # Then it says which one, and goes on when the next leader has made it again
    until(lambda: any(f"no exchange '{submit}' on the broker any more" in t for t in rabbit.status))
    ports.leader(rabbit.broker)
    said.join(PATIENCE_S)
    assert not said.is_alive()
    until(lambda: any("what was missing on the broker is there" in t for t in rabbit.status))


def test_a_worker_says_that_nobody_takes_what_it_sends(
    rabbit: RabbitMQHarness, ports: Ports, update: Callable[..., Envelope], until: Until
) -> None:
    leader, worker = ports.leader(rabbit.broker), ports.worker(rabbit.broker)
    worker.submit(update("u"))
    leader.close()
    with closing(rabbit.connect()) as connection:
        names = rabbit.topology
        connection.channel().queue_unbind(names.updates.name, names.submit, UPDATES)
    said = threading.Thread(target=worker.submit, args=(update("v"),))
    said.start()
    line = f"no queue is bound to {rabbit.topology.submit}"
    until(lambda: any(line in text for text in rabbit.status))
    ports.leader(rabbit.broker)
    said.join(PATIENCE_S)
    assert not said.is_alive()


@pytest.fixture
def team(rabbit: RabbitMQHarness) -> Iterator[Clients]:
    """Clients that take their time, so that there is a run to disturb."""
    pause = threading.Event()

    def slowly(update: object) -> object:
        pause.wait(0.05)
        return update

    clients = Clients(rabbit.broker, slowly)
    yield clients
    clients.close()


def test_a_run_in_which_everything_is_deleted_once_ends_well(
    rabbit: RabbitMQHarness, team: Clients, ports: Ports, tmp_path: Path, until: Until
) -> None:
    # Given a run at work
    tables = experiment(
        experiment={"versions": 100_000},
        aggregation={"quorum": 3, "deadline_s": 1.0},
        participation={"assignment_deadline_s": 2.0},
    )
    port = ports.aggregator(rabbit.broker)
    service = AggregatorService(tables, port, tmp_path, run_id="run")
    running = threading.Thread(target=service.run)
    running.start()

    def reached(more: int) -> None:
        wanted = (service.coordinator.version if service.coordinator else 0) + more
        until(lambda: service.coordinator is not None and service.coordinator.version >= wanted)

    reached(2)
    # When every part of the topology is deleted, one after another
    for what in (*EXCHANGES, *QUEUES, *UNBOUND):
        Vandal(rabbit).strike(what)
        # Then each time the run goes on
        reached(3)
    # And it ends, with every update accounted for
    service.stop()
    running.join(PATIENCE_S)
    last = service.coordinator.version
    port.close()
    done = experiment(
        **{**tables.model_dump(exclude_unset=True), "experiment": {"versions": last + 3}}
    )
    again = AggregatorService(done, ports.aggregator(rabbit.broker), tmp_path, run_id="run")
    assert again._port.lead(PATIENCE_S)
    assert again.run() == "finished"
    ledger = Ledger(tmp_path)
    assert verify(ledger) == []
    ledger.close()
    view = inspect_federation(rabbit.node.url, rabbit.topology.federation)
    assert view.rejected is not None
