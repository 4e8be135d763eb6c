"""Permissions of each role on a RabbitMQ server: the least that works, measured on 3.10.

Three regular expressions of names. configure: make and delete; write: publish to an exchange, bind
a queue; read: consume from a queue (and purge it), bind to an exchange. Nobody may write to the
default exchange: whoever may can write to any queue.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fluffle.broker.topology import Topology


@dataclass(frozen=True)
class Rights:
    """As ``rabbitmqctl set_permissions`` takes them."""

    configure: str
    write: str
    read: str


#: What an aggregator publishes to, declares and binds.
_SHARED = (
    *("global-model", "latest-model", "assign", "assignments", "updates", "events"),
    *("dead-letter", "updates.rejected"),
)


def of_aggregator(names: Topology, helper: bool = False) -> Rights:
    """Makes everything that is shared, publishes models and turns; sends no updates.

    helper: also asks the helper, and reads its answers.
    """
    reads = [name for name in _SHARED if name != "updates.rejected"]
    more = ("helper", "unmask", "masks") if helper else ()
    return Rights(
        _any(names, *_SHARED, "submit", "aggregator", *more),
        _any(names, *_SHARED, "aggregator", *more),
        _any(names, *reads, "submit", "aggregator", *(m for m in more if m != "unmask")),
    )


def of_helper(names: Topology) -> Rights:
    """Reads requests, sends answers; sees no model and no update."""
    return Rights("^$", _any(names, "helper"), _any(names, "unmask"))


def of_aggregator_of_declared(names: Topology) -> Rights:
    """On a broker whose operators declare: makes its lock and nothing else, and binds nothing.

    It may write to ``updates.rejected``, which is for binding: 4.3 shows nobody a queue on which he
    has no right, and reading it would be the right to purge it.
    """
    return Rights(
        _any(names, "aggregator"),
        _any(names, "global-model", "assign", "dead-letter", "updates.rejected", "aggregator"),
        _any(names, "latest-model", "assignments", "updates", "events", "submit", "aggregator"),
    )


def of_evaluator(names: Topology) -> Rights:
    """Reads models, sends evaluations; takes no turns."""
    return _worker(names, r"evaluator-.*")


def of_pool_worker(names: Topology) -> Rights:
    """Reads models and turns, sends updates. All workers of a pool are one user."""
    return _worker(names, r"worker-.*", "assignments")


def of_resident(names: Topology, client: str) -> Rights:
    """Reads models, sends updates as itself. No turns: who may read a queue may purge it."""
    return _worker(names, rf"{_literal(client)}\..*")


def of_admin() -> Rights:
    """Sees everything in RabbitMQ's UI; publishes, makes and deletes nothing."""
    return Rights("^$", "^$", ".*")


def _worker(names: Topology, mailboxes: str, *more: str) -> Rights:
    federation = _literal(names.federation)
    mine = rf"worker\.{mailboxes}"
    reads = "|".join([mine, "latest-model", "global-model", *more])
    return Rights(
        rf"^{federation}\.{mine}$",
        rf"^{federation}\.({mine}|submit)$",
        rf"^{federation}\.({reads})$",
    )


def _any(names: Topology, *parts: str) -> str:
    return rf"^{_literal(names.federation)}\.({'|'.join(_literal(part) for part in parts)})$"


def _literal(text: str) -> str:
    return re.escape(text).replace(r"\-", "-")  # escaped or not, it is a hyphen
