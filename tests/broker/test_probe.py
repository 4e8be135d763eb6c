"""What ``fluffle doctor --broker`` finds out, from servers that are the way they are."""

from __future__ import annotations

import pytest

from fluffle.broker.admin.node import Node
from fluffle.broker.admin.permissions import of_aggregator, of_resident
from fluffle.broker.admin.probe import probe
from fluffle.broker.errors import AccessRefused, BrokerUnreachable
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.broker.topology import Topology
from fluffle.doctor.rabbitmq import find_broker
from fluffle.schemas.sizes import MIB
from tests.urls import as_user as with_user
from tests.urls import user_of

pytestmark = pytest.mark.rabbitmq


def as_user(node: Node, name: str, configure: str, write: str, read: str) -> str:
    """The URL of a new user with these rights."""
    node.ctl("add_user", name, "secret")
    node.ctl("set_permissions", name, configure, write, read)
    return with_user(node.url, name)


def federate(node: Node, federation: str) -> None:
    """Make a federation, as an aggregator that leads for a moment does."""
    port = RabbitMQBroker(node.url, federation).aggregator()
    assert port.lead(timeout_s=30)
    port.close()


def test_a_server_without_a_federation(rabbitmq: Node, federation: str) -> None:
    found = probe(rabbitmq.url, federation)
    assert found.version[0].isdigit()
    assert found.user == user_of(rabbitmq.url)
    assert (found.federation, found.may_train, found.may_lead, found.waiting) == (
        *(False, True, True, None),
    )
    queues = rabbitmq.ctl("list_queues", "name")
    assert federation not in queues, "something was left behind"


def test_an_aggregators_user_may_lead_on_a_fresh_broker_and_a_sites_may_not(
    rabbitmq: Node, federation: str
) -> None:
    # Given the users that the commands make, and nobody who has led yet
    names = Topology(federation)
    roles = {"a": of_aggregator(names), "s": of_resident(names, f"{federation}-s")}
    for role, their in roles.items():
        rights = their.configure, their.write, their.read
        found = probe(as_user(rabbitmq, f"{federation}-{role}", *rights), federation)
        # Then each learns what it will be able to do
        assert not found.federation
        assert (found.may_lead, found.may_train) == (role == "a", role == "s")
    # And the doctor finds nothing wrong with it
    finding = find_broker(with_user(rabbitmq.url, f"{federation}-a"), federation)
    assert finding.status == "ok", finding
    assert "may lead" in finding.found


def test_a_federation_and_users_with_the_rights_of_one_role_each(
    rabbitmq: Node, federation: str
) -> None:
    # Given a federation, which an aggregator has made
    federate(rabbitmq, federation)
    f = federation
    users = {
        "worker": as_user(
            *(rabbitmq, f"{f}-w", rf"^{f}\.worker\.worker-.*$"),
            *(rf"^{f}\.(worker\.worker-.*|submit)$", rf"^{f}\.(worker\.worker-.*|global-model)$"),
        ),
        "aggregator": as_user(
            *(rabbitmq, f"{f}-a", rf"^{f}\.(global-model|assign|updates)$"),
            *(rf"^{f}\.(global-model|assign)$", rf"^{f}\.updates$"),
        ),
        "nobody": as_user(rabbitmq, f"{f}-n", "^$", "^$", "^$"),
    }
    # When each looks
    found = {name: probe(url, federation) for name, url in users.items()}
    # Then each learns what it may do, and how large a message may be where it may send one
    rights = {n: (p.may_train, bool(p.may_lead), p.takes_large) for n, p in found.items()}
    assert rights == {
        "worker": (True, False, True),
        "aggregator": (False, True, True),
        "nobody": (False, False, False),
    }
    assert found["aggregator"].waiting == 0
    assert found["worker"].federation
    assert found["worker"].waiting in (0, None)  # 4.3 tells nobody who has no right there
    # And nothing has reached a queue
    depths = rabbitmq.ctl("list_queues", "name", "messages").splitlines()
    ours = [line.split() for line in depths if line.startswith(federation)]
    assert len(ours) == 6
    assert {depth for _, depth in ours} == {"0"}


def test_a_server_with_a_small_limit_says_how_small() -> None:
    with Node(settings={"max_message_size": str(5 * MIB)}) as node:
        federate(node, "fluffle")
        found = probe(node.url)
    assert found.largest_message == 5 * MIB
    assert not found.takes_large


def test_a_model_that_is_too_large_for_the_brokers_messages_is_named() -> None:
    # Given the limit that RabbitMQ 4 has by itself, and nobody who has led yet
    with Node(settings={"max_message_size": str(16 * MIB)}) as node:
        small = find_broker(node.url, "fluffle", 4_000_000)
        large = find_broker(node.url, "fluffle", 5_000_000)
        beyond = find_broker(node.url, "fluffle", 200_000_000)
    # Then the doctor says of each model whether it fits, and what would help
    assert small.status == "ok", small
    assert "needs 15.3 MiB and fits" in small.found
    assert large.status == beyond.status == "lack", (large, beyond)
    assert "messages up to 16 MiB" in large.found
    assert "a model of 5,000,000 parameters needs 19.1 MiB, which is too much" in large.found
    assert "max_message_size" in large.get
    assert "512 MiB is the most" in beyond.get


def test_a_model_fits_that_is_larger_than_the_usual_limit_and_smaller_than_ours(
    rabbitmq: Node, federation: str
) -> None:
    finding = find_broker(rabbitmq.url, federation, 10_000_000)
    assert finding.status == "ok", finding
    assert "needs 38.2 MiB and fits" in finding.found


def test_what_cannot_be_reached_or_entered_is_said_without_the_password(rabbitmq: Node) -> None:
    with pytest.raises(BrokerUnreachable, match=r"no RabbitMQ at 127\.0\.0\.1:9") as gone:
        probe("amqp://guest:s3cret@127.0.0.1:9/")
    with pytest.raises(AccessRefused, match="refused user 'nobody'") as refused:
        probe(with_user(rabbitmq.url, "nobody", "s3cret"))
    with pytest.raises(AccessRefused, match="virtual host"):
        probe(rabbitmq.url.replace("%2F", "nowhere"))
    assert "s3cret" not in f"{gone.value}{refused.value}"
