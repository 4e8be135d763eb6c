"""Definitions: users, rights and limits of a federation, as RabbitMQ loads them from a file.

https://www.rabbitmq.com/docs/definitions; passwords are salted hashes, as in
https://www.rabbitmq.com/docs/passwords.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fluffle.broker.admin.permissions import Rights
from fluffle.broker.topology import REJECTED_TTL_S, Topology
from fluffle.schemas.sizes import MIB

#: A site has two connections; two more while it reconnects.
SITE_LIMITS = {"max-connections": 4, "max-channels": 16}


@dataclass(frozen=True)
class Policy:
    """What queues of some names are held to, whoever declares them."""

    #: An operator's policy, which no other can loosen, or an ordinary one.
    kind: Literal["operator_policy", "policy"]
    name: str
    pattern: str
    priority: int
    limits: Mapping[str, int | str]


def policies_of(federation: str) -> list[Policy]:
    """The limits of what workers and sites may declare themselves."""
    mailboxes = rf"^{re.escape(federation)}\.worker\..*$"
    events = rf"^{re.escape(federation)}\.events$"
    rejected = rf"^{re.escape(federation)}\.updates\.rejected$"
    return [
        # A mailbox holds one model. This holds for queues that somebody declares otherwise as well,
        # and what nobody consumes from goes.
        Policy(
            *("operator_policy", f"{federation}-mailboxes", mailboxes, 1),
            {"max-length": 1, "expires": 600_000},
        ),
        # RabbitMQ takes no policy for a stream that has a key that streams lack, so they have their
        # own, below the other in priority. A stream keeps its last segment, which its owner could
        # make huge: for that there is an ordinary policy only, and a site may make none.
        Policy(
            *("operator_policy", f"{federation}-streams", mailboxes, 0),
            {"max-length-bytes": 16 * MIB},
        ),
        Policy(
            *("policy", f"{federation}-streams", mailboxes, 0),
            {"stream-max-segment-size-bytes": 4 * MIB, "max-age": "1m"},
        ),
        # An event is a hundred bytes; what is longer must not fill a disk.
        Policy(
            *("operator_policy", f"{federation}-events", events, 0),
            {"max-length-bytes": 16 * MIB},
        ),
        # Copies of what was rejected say when they go; what the broker itself gave up does not.
        Policy(
            *("operator_policy", f"{federation}-rejected", rejected, 0),
            {"message-ttl": int(REJECTED_TTL_S * 1000)},
        ),
    ]


def definitions_of(
    federation: str,
    vhost: str,
    rights: Mapping[str, Rights],
    passwords: Mapping[str, str],
    *,
    sites: Collection[str] = (),
    declared: bool = False,
) -> dict[str, Any]:
    """A definitions file: these users with these passwords. ``admin`` may see RabbitMQ's UI.

    sites: of the users those that are held to ``SITE_LIMITS``.
    declared: with the exchanges, queues and bindings, for a broker whose operators make them.
    """
    tables = declared_topology(Topology(federation), vhost) if declared else {}
    return tables | {
        "vhosts": [{"name": vhost}],
        "users": [
            {
                "name": name,
                "password_hash": hash_of(passwords[name]),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "administrator" if name == "admin" else "",
                **({"limits": SITE_LIMITS} if name in sites else {}),
            }
            for name in rights
        ],
        "permissions": [
            {
                "user": name,
                "vhost": vhost,
                "configure": their.configure,
                "write": their.write,
                "read": their.read,
            }
            for name, their in rights.items()
        ],
        "policies": [
            {"vhost": vhost, "name": policy.name, **_value(policy)}
            for policy in policies_of(federation)
            if policy.kind == "policy"
        ],
        "parameters": [
            {
                "vhost": vhost,
                "component": policy.kind,
                "name": policy.name,
                "value": _value(policy),
            }
            for policy in policies_of(federation)
            if policy.kind == "operator_policy"
        ],
    }


def _value(policy: Policy) -> dict[str, Any]:
    return {
        "pattern": policy.pattern,
        "apply-to": "queues",
        "priority": policy.priority,
        "definition": dict(policy.limits),
    }


def declared_topology(names: Topology, vhost: str) -> dict[str, Any]:
    """The exchanges, queues and bindings that are shared, as tables of a definitions file."""
    return {
        "exchanges": [
            {
                **{"name": name, "vhost": vhost, "type": kind, "durable": True},
                **{"auto_delete": False, "internal": False, "arguments": {}},
            }
            for name, kind in names.exchanges.items()
        ],
        "queues": [
            {
                **{"name": queue.name, "vhost": vhost, "durable": True, "auto_delete": False},
                "arguments": dict(queue.arguments),
            }
            for queue in names.shared
        ],
        "bindings": [
            {
                **{"source": exchange, "vhost": vhost, "destination": queue},
                **{"destination_type": "queue", "routing_key": key, "arguments": {}},
            }
            for exchange, queue, key in names.bindings
        ],
    }


def hash_of(password: str) -> str:
    """As RabbitMQ keeps it."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
