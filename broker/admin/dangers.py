"""Dangers of a broker's settings: what its operators can see, and a federation suffers from.

A quorum queue whose machine is older than its server's has confirmed messages and dropped them
(rabbitmq-server #17504) and kept others from everybody (#15473). A policy changes what a queue does
without any of its clients hearing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from fluffle.broker.admin.management import Management
from fluffle.broker.errors import AccessRefused, BrokerUnreachable
from fluffle.broker.rabbitmq.address import alternatives, parameters_of
from fluffle.broker.topology import DELIVERY_LIMIT, Topology
from fluffle.schemas.errors import UserError

#: What an update may be held unacked for: aggregation.hold_s, by default, in milliseconds.
HOLD_MS = 60_000
#: Version of the quorum queue's machine that a release's servers have; unlisted ones are compared
#: with each other only.
_MACHINES = {"4.0": 5, "4.3": 8}

#: A policy's key -> why its value is dangerous for what we keep; None where it is not.
_Rule = Callable[[Any], str | None]


def _always(why: str) -> _Rule:
    return lambda value: why


def _below(least: float, why: str) -> _Rule:
    return lambda value: why if isinstance(value, (int, float)) and value < least else None


_LOSES: dict[str, _Rule] = {
    "message-ttl": _always("messages are dropped that nobody has taken in that time"),
    "expires": _always("the queue goes with all that is in it where nobody uses it for that long"),
}
_WORK: dict[str, _Rule] = {
    **_LOSES,
    "max-length": _always("what is more is refused"),
    "delivery-limit": _below(DELIVERY_LIMIT, "fewer lost connections than 20 drop a message"),
    "consumer-timeout": _below(HOLD_MS, "an update may be held for longer (aggregation.hold_s)"),
}


def api_of(url: str) -> str:
    """Where the management API of this broker is, unless somebody has put it elsewhere.

    Raises: UserError.
    """
    broker = parameters_of(alternatives(url)[0])
    user = getattr(broker.credentials, "username", "")
    password = getattr(broker.credentials, "password", "")
    host = f"[{broker.host}]" if ":" in broker.host else broker.host
    scheme, port = ("http", 15672) if broker.ssl_options is None else ("https", 15671)
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{host}:{port}"


def dangers(management: Management, federation: str, vhost: str) -> list[str]:
    """A line for each danger, with what to do.

    Raises: AccessRefused, BrokerUnreachable, UserError.
    """
    names, place = Topology(federation), quote(vhost, safe="")
    overview = management.read("overview") or {}
    release = ".".join(str(overview.get("rabbitmq_version", "")).split(".")[:2])
    nodes = management.read("nodes") or []
    found = _flags(management.read("feature-flags") or [])
    machines: dict[str, int] = {}
    for queue in names.shared:
        seen = management.read(f"queues/{place}/{queue.name}")
        if seen is None:
            continue
        rules = _rules(names, queue.name)
        found += _policies(queue.name, seen, rules)
        found += _replicas(queue.name, seen, len(nodes))
        for member in _replica_status(management, f"{place}/{queue.name}"):
            version = member.get("Machine Version")
            if isinstance(version, int):
                machines[f"{queue.name} on {member.get('Node Name')}"] = version
    found += old_machines(machines, release)
    found += _exchanges(management, names, place)
    return found


def _replica_status(management: Management, queue: str) -> list[dict[str, Any]]:
    try:
        return management.read(f"queues/quorum/{queue}/status") or []
    except (AccessRefused, BrokerUnreachable):
        raise
    except UserError:  # it has no such page, as before 3.13, or the queue is no quorum queue
        return []


def _rules(names: Topology, queue: str) -> dict[str, _Rule]:
    if queue in (names.updates.name, names.assignments.name):
        return _WORK
    if queue == names.latest_model.name:
        return {**_LOSES, "max-age": _always("late joiners find no model that is older")}
    return _LOSES if queue == names.rejected.name else {}


def _flags(flags: list[dict[str, Any]]) -> list[str]:
    off = [
        str(flag["name"])
        for flag in flags
        if flag.get("state") == "disabled" and flag.get("stability") == "stable"
    ]
    if not off:
        return []
    line = (
        f"feature flags are off: {', '.join(off)}; when every node runs its new release, "
        "rabbitmqctl enable_feature_flag all"
    )
    return [line]


def _policies(queue: str, seen: Mapping[str, Any], rules: Mapping[str, _Rule]) -> list[str]:
    effective = seen.get("effective_policy_definition") or {}
    named = " and ".join(
        str(seen[kind]) for kind in ("policy", "operator_policy") if seen.get(kind)
    )
    found = []
    for key, value in effective.items() if isinstance(effective, dict) else ():
        why = rules[key](value) if key in rules else None
        if why is not None:
            found.append(f"policy {named} sets {key} = {value} on {queue}: {why}")
    return found


def _replicas(queue: str, seen: Mapping[str, Any], nodes: int) -> list[str]:
    members, online = seen.get("members") or [], seen.get("online") or []
    wanted = min(3, nodes)
    if members and len(members) < wanted:
        line = (
            f"{queue} has {len(members)} of {wanted} replicas, and goes with its nodes: "
            "rabbitmq-queues grow NODE all, for streams rabbitmq-streams add_replica"
        )
        return [line]
    missing = sorted(set(members) - set(online))
    return [f"{queue} has no replica that works on {', '.join(missing)}"] if missing else []


def old_machines(machines: Mapping[str, int], release: str) -> list[str]:
    """machines: a replica of a quorum queue -> the version of its machine."""
    newest = max([_MACHINES.get(release, 0), *machines.values()])
    old = [f"{name} ({version})" for name, version in machines.items() if version < newest]
    if not old:
        return []
    line = (
        f"quorum queues are at an old machine version (now {newest}): {', '.join(old)}; messages "
        "may be confirmed and lost (rabbitmq-server #17504): enable all feature flags, then "
        "restart the nodes one after the other"
    )
    return [line]


def _exchanges(management: Management, names: Topology, place: str) -> list[str]:
    policies = {one.get("name"): one for one in management.read(f"policies/{place}") or []}
    found = []
    for exchange in names.exchanges:
        seen = management.read(f"exchanges/{place}/{exchange}") or {}
        policy = policies.get(seen.get("policy"), {})
        if "alternate-exchange" in policy.get("definition", {}):
            found.append(
                f"policy {policy['name']} gives {exchange} an alternate exchange: what finds no "
                "queue is taken there and counts as sent"
            )
    return found
