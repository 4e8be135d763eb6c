"""Experiments whose turns a broker may take back while they are trained are told of."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from fluffle.broker import Envelope
from fluffle.broker.admin.consumer_timeout import needed_s, setting, too_short
from fluffle.broker.admin.node import Node
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.schemas import Experiment

LONG = Experiment.model_validate({"participation": {"assignment_deadline_s": 7200.0}})
SITES = {
    "task": {"clients": 0},
    "participation": {"residents": ["a"], "assignment_deadline_s": 7200.0},
}


@pytest.mark.parametrize(
    ("version", "tables", "said"),
    [
        ("3.10.8", {}, None),
        ("3.10.8", {"participation": {"assignment_deadline_s": 1800.0}}, None),
        ("3.11.2", {"participation": {"assignment_deadline_s": 7200.0}}, "deadline_s is 7200 s"),
        ("3.12.0", {"participation": {"assignment_deadline_s": 7200.0}}, None),
        ("4.3.6", {"participation": {"assignment_deadline_s": 7200.0}}, None),
        ("4.3.6", {"participation": {"assignment_deadline_s": 1e6}}, "deadline_s is 1e+06 s"),
        ("4.3.6", {"aggregation": {"hold_s": 3600.0}}, "hold_s is 3600 s"),
        ("3.10.8", SITES, None),  # sites take no turns
    ],
)
def test_what_outlasts_a_server_is_said(
    version: str, tables: dict[str, Any], said: str | None
) -> None:
    experiment = Experiment.model_validate(tables)
    warning = too_short(experiment, version)
    if said is None:
        assert warning is None
    else:
        assert warning is not None
        assert said in warning
        # And the setting that is asked for is long enough
        assert setting(needed_s(experiment)) in warning
        assert int(setting(needed_s(experiment))) > 1000 * needed_s(experiment)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_turn_outlasts_the_servers_timeout_where_queues_have_their_own() -> None:
    # Given a server that takes unacked messages back after five seconds (it looks once a minute),
    # and a worker that trains for longer than that
    with Node(settings={"consumer_timeout": "5000"}) as node, ExitStack() as stack:
        broker = RabbitMQBroker(node.url)
        leader = broker.aggregator()
        stack.callback(leader.close)
        assert leader.lead(20)
        if not too_short(LONG, "3.10") or too_short(LONG, leader.server_version):
            pytest.skip(f"RabbitMQ {leader.server_version} knows one timeout for all queues")
        leader.assign([Envelope(b"turn")], 600)
        worker, other = (broker.worker(name, 1) for name in ("w", "other"))
        stack.callback(worker.close)
        stack.callback(other.close)
        (held,) = filter(None, (port.receive_assignment(10) for port in (worker, other)))
        # Then nobody else gets its turn
        assert other.receive_assignment(65) is None
        assert worker.receive_assignment(1) is None
        assert held.delivery_count == 0
