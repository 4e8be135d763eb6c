"""What is dangerous for a federation on a server is named, on a server that is set up so."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from fluffle.broker.admin.dangers import api_of, dangers, old_machines
from fluffle.broker.admin.management import Management
from fluffle.broker.admin.node import Node
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.schemas import UserError

pytestmark = pytest.mark.rabbitmq

#: Of 3.10 and later; where a server requires one more it enables it by itself.
FLAGS = "implicit_default_bindings,quorum_queue,stream_queue,virtual_host_metadata"


class HalfUpgraded(Node):
    """A server that was not told to use what is new in it."""

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "RABBITMQ_FEATURE_FLAGS": FLAGS}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with HalfUpgraded(management=True) as node:
        broker = RabbitMQBroker(node.url)
        port = broker.aggregator()
        assert port.lead(30)
        yield node
        port.close()


def api(node: Node, user: str = "") -> str:
    """Where the node's API is, for its own user or another."""
    owner = urlsplit(node.url).netloc.rpartition("@")[0]
    return node.management_url.replace("http://", f"http://{user or owner}@")


def seen(node: Node, *expected: str) -> list[str]:
    """What is found once the API, which collects its figures, tells of all of these."""
    until = time.monotonic() + 30
    while True:
        found = dangers(Management(api(node)), "fluffle", "/")
        missing = [text for text in expected if not any(text in line for line in found)]
        if not missing:
            return found
        assert time.monotonic() < until, (missing, found)
        time.sleep(0.2)


def test_feature_flags_that_are_off_are_named_and_nothing_else(node: Node) -> None:
    (line,) = seen(node, "feature flags")
    assert line.startswith("feature flags are off: ")
    off = line.removeprefix("feature flags are off: ").partition(";")[0].split(", ")
    listed = node.ctl("list_feature_flags", "name", "state", "--no-table-headers").splitlines()
    disabled = {name for name, state in map(str.split, listed) if state == "disabled"}
    assert set(off) <= disabled
    assert off


def test_policies_that_take_away_what_is_relied_on_are_named(node: Node) -> None:
    # Given policies of somebody who meant all queues
    node.ctl("set_policy", "tidy", ".*", '{"message-ttl": 60000}', "--apply-to", "queues")
    node.ctl("set_operator_policy", "short", "updates$", '{"delivery-limit": 3}')
    try:
        # Then each queue that loses by them is named with the policy and the key, and no other
        found = seen(
            node,
            *("message-ttl = 60000 on fluffle.updates:", "message-ttl = 60000 on fluffle.assign"),
            "tidy sets message-ttl = 60000 on fluffle.updates.rejected: messages are dropped",
            "delivery-limit = 3 on fluffle.updates: fewer lost connections",
        )
        assert not [line for line in found if "fluffle.events" in line]
    finally:
        node.ctl("clear_policy", "tidy")
        node.ctl("clear_operator_policy", "short")


def test_an_alternate_exchange_is_named(node: Node) -> None:
    node.ctl("set_policy", "else", "submit$", '{"alternate-exchange": "amq.fanout"}')
    try:
        found = seen(node, "policy else gives fluffle.submit an alternate exchange")
        assert not [line for line in found if "fluffle.assign " in line]
    finally:
        node.ctl("clear_policy", "else")


def test_a_consumer_timeout_below_hold_s_is_named(node: Node) -> None:
    try:
        node.ctl("set_policy", "hurry", "updates$", '{"consumer-timeout": 5000}')
    except subprocess.CalledProcessError:
        pytest.skip("this server's policies have no consumer-timeout")
    try:
        seen(node, "consumer-timeout = 5000 on fluffle.updates: an update may be held for longer")
    finally:
        node.ctl("clear_policy", "hurry")


def test_who_may_not_look_hears_so(node: Node) -> None:
    node.ctl("add_user", "nobody", "secret")
    with pytest.raises(UserError, match="refused user 'nobody'"):
        dangers(Management(api(node, "nobody:secret")), "fluffle", "/")
    nowhere = api_of("amqp://a:b%2F@127.0.0.1:9/")
    assert nowhere == "http://a:b%2F@127.0.0.1:15672"
    with pytest.raises(UserError, match="no management API at"):
        dangers(Management("http://a:b@127.0.0.1:9"), "fluffle", "/")


def test_replicas_at_an_older_machine_version_are_named() -> None:
    # As 4.3's quorum_status tells of a queue that an upgrade has left behind
    assert old_machines({"q on a": 8, "q on b": 8}, "4.3") == []
    (line,) = old_machines({"q on a": 8, "q on b": 7}, "4.2")
    assert "q on b (7)" in line
    (line,) = old_machines({"q on a": 4}, "4.3")
    assert "(now 8): q on a (4)" in line
    assert old_machines({}, "3.10") == []
