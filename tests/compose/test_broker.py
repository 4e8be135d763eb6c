"""What a person sees in RabbitMQ's UI, asked through the API behind it."""

from __future__ import annotations

import urllib.error

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]

ROLES = {"aggregator", "evaluator", "worker"}


def test_models_go_through_a_fanout_exchange_to_one_mailbox_for_each_worker(stack):
    exchange = stack.api("exchanges/%2F/fluffle.global-model")
    assert (exchange["type"], exchange["durable"]) == ("fanout", True)
    stack.wait_for("three mailboxes", lambda: len(stack.mailboxes()) == 3)
    assert len(stack.mailboxes("evaluator")) == 1
    mailbox = stack.api(f"queues/%2F/{stack.mailboxes()[0]}")
    assert mailbox["exclusive"]
    assert mailbox["arguments"]["x-max-length"] == 1
    assert mailbox["arguments"]["x-overflow"] == "drop-head"


def test_updates_are_in_a_quorum_queue_and_what_cannot_be_used_has_a_place(stack):
    updates = stack.api("queues/%2F/fluffle.updates")
    assert updates["type"] == "quorum"
    assert updates["arguments"]["x-dead-letter-exchange"] == "fluffle.dead-letter"
    bindings = stack.api("exchanges/%2F/fluffle.dead-letter/bindings/source")
    assert [b["destination"] for b in bindings] == ["fluffle.updates.rejected"]


def test_connections_are_named_by_role_and_host_and_messages_say_who_sent_them(stack):
    hosts = {one[:12] for one in stack.containers("worker")}
    names = [c["client_properties"]["connection_name"] for c in stack.api("connections")]
    named = {n.split("@")[1].split()[0] for n in names if n.startswith("worker-")}
    assert named == hosts
    assert any(n.startswith("aggregator@") for n in names)
    with stack.connect("worker", "carrot") as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        arguments = {"x-stream-offset": "last"}
        consumed = channel.consume("fluffle.latest-model", arguments=arguments)
        _, properties, _ = next(consumed)
    assert (properties.user_id, properties.type) == ("aggregator", "global-model")
    assert {"run_id", "version"} <= set(properties.headers)


def test_there_are_the_three_roles_and_an_admin_and_no_guest(stack):
    users = {user["name"]: user["tags"] for user in stack.api("users")}
    assert set(users) == {*ROLES, "admin"}
    assert not any(users[role] for role in ROLES)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        stack.api("overview", "worker", "carrot")


def test_metrics_of_the_broker_stay_inside_and_the_ui_on_this_machine(stack):
    lines = stack.compose("ps", "--format", "{{.Service}} {{.Publishers}}")
    assert "0.0.0.0" not in lines
    assert "rabbitmq_prometheus" in stack.compose(
        *("exec", "-T", "rabbitmq", "rabbitmq-plugins", "list", "--enabled", "--minimal")
    )
