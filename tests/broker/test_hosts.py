"""A broker of several hosts: they are tried in turn, whichever of them is well."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fluffle.broker import BrokerUnreachable
from fluffle.broker.admin.inspection import inspect_federation
from fluffle.broker.admin.node import Node, free_tcp_ports
from fluffle.broker.admin.probe import probe
from fluffle.broker.rabbitmq.address import alternatives, completed
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from tests.proxy import Proxy

PATIENCE_S = 20.0


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("amqp://u:p@one:5672/v", ["amqp://u:p@one:5672/v"]),
        ("amqp://u:p@one:1,two/v?heartbeat=5", ["u:p@one:1/v", "u:p@two/v"]),
        ("amqps://u:a,b@one,[::1]:2", ["u:a,b@one", "u:a,b@[::1]:2"]),
        ("amqp://u:p@one/v,amqp://w:q@two:3/v", ["u:p@one/v", "w:q@two:3/v"]),
        ("amqp://one,two", ["one", "two"]),
    ],
)
def test_each_host_has_a_url(url: str, hosts: list[str]) -> None:
    found = alternatives(url)
    assert [one.partition("?")[0].partition("://")[2] for one in found] == [
        host.removeprefix("amqp://") for host in hosts
    ]
    assert all(one.endswith("heartbeat=5") for one in found) == ("heartbeat" in url)


def test_files_with_secrets_are_for_every_host(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("secret")
    found = alternatives(completed("amqp://u@one,two/v", None, None, None, tmp_path / "pw"))
    assert [urlsplit(one).hostname for one in found] == ["one", "two"]
    assert all(one.endswith("pw") for one in found)


def with_hosts(node: Node, *ports: int) -> str:
    """The node's URL with these ports instead of its own."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return node.url.replace(f"127.0.0.1:{node.tcp_port}", hosts)


@pytest.mark.rabbitmq
def test_a_host_that_is_down_is_passed_over(rabbitmq: Node, federation: str, ports, model) -> None:
    # Given two hosts of which the first is down
    (dead,) = free_tcp_ports(1)
    url = with_hosts(rabbitmq, dead, rabbitmq.tcp_port)
    broker = RabbitMQBroker(url, federation, connect_timeout_s=PATIENCE_S)
    # Then everybody finds the second
    leader, worker = ports.leader(broker), ports.worker(broker)
    leader.publish_model(model(1))
    assert worker.wait_model(None, PATIENCE_S) is not None
    assert probe(url, federation).federation
    assert inspect_federation(url, federation).led


@pytest.mark.rabbitmq
def test_whose_host_dies_goes_on_at_another(
    rabbitmq: Node, federation: str, ports, model, update
) -> None:
    # Given a leader and a worker at the first of two hosts
    first, second = Proxy(rabbitmq.url), Proxy(rabbitmq.url)
    url = with_hosts(rabbitmq, *(urlsplit(one.url).port or 0 for one in (first, second)))
    broker = RabbitMQBroker(url, federation)
    leader, worker = ports.leader(broker), ports.worker(broker)
    leader.consume(10)
    # When it goes away, and later the second, while the first has come back
    for gone, back in ((first, second), (second, first)):
        back.refuse(False)
        gone.refuse(True)
        gone.reset()
        # Then both go on at the other
        worker.submit(update(f"at {back.url}"))
        delivery = leader.receive(PATIENCE_S)
        assert delivery is not None
        leader.ack([delivery])
        version = 1 if back is second else 2
        leader.publish_model(model(version))
        assert worker.wait_model((0, 0, 0, 0) if version == 1 else None, PATIENCE_S) is not None
    first.close()
    second.close()


def test_where_no_host_answers_all_of_them_are_named() -> None:
    one, two = free_tcp_ports(2)
    broker = RabbitMQBroker(f"amqp://127.0.0.1:{one},127.0.0.1:{two}/", connect_timeout_s=0.5)
    with pytest.raises(BrokerUnreachable, match=rf"127.0.0.1:{one}, 127.0.0.1:{two}, virtual"):
        broker.worker("w", 1)
