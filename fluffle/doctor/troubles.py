"""The four troubles that people run into, each answered in a line with what was found here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: The name of a finding -> its facts.
Facts = Mapping[str, Mapping[str, Any]]

#: A commit that takes this long shows in the versions per minute.
_SLOW_SYNC_MS = 100.0


def _cannot_connect(facts: Facts) -> str:
    broker, server = facts["broker"], facts["rabbitmq"]
    if broker.get("reachable"):
        return "the broker answers; workers only call out, so its port is the only one to open"
    if broker["url"]:
        return (
            "the broker cannot be used, see above. Workers only call out: its port is the only "
            "one to open. `fluffle run` works without one"
        )
    local = ", `--broker local` starts the server that is here" if server["scripts"] else ""
    return (
        f"`fluffle run` needs no server{local}; `fluffle doctor --broker URL` tells whether yours "
        "answers"
    )


def _out_of_memory(facts: Facts) -> str:
    fit, cores = facts["memory"]["worker_processes"], facts["python"]["cores"]
    return (
        f"{fit} worker processes (--workers) fit now. One process is enough for any number of "
        f"clients: --slots {cores} trains {cores} at once, the rest take turns. Else a smaller "
        "training.batch_size"
    )


def _unstable(facts: Facts) -> str:
    load, cores = facts["python"]["load"], facts["python"]["cores"]
    same = "order" if facts["gpu"]["usable"] else "bytes"
    busy = f". Now busy (load {load:g}): turns may miss deadlines" if load > 2 * cores else ""
    return (
        f"keep experiment.seed; a cohort with aggregation.deterministic gives the same {same} "
        "every time. Asynchronous: a lower max_staleness, a larger quorum. Skewed data: "
        f"training.proximal_mu{busy}"
    )


def _slow(facts: Facts) -> str:
    sync_ms, waiting = facts["disk"]["sync_ms"], facts["broker"].get("waiting")
    if sync_ms is None:
        disk = "nothing can be written to --out"
    else:
        pace = "slow: put --out on a local disk" if sync_ms > _SLOW_SYNC_MS else "fine"
        disk = f"a small version is on disk in {sync_ms:g} ms here ({pace})"
    queue = f", {waiting} updates wait at the broker" if waiting is not None else ""
    return (
        f"{disk}{queue}. A smaller quorum or deadline_s makes versions sooner; nobody waits for "
        "the slowest client"
    )


TROUBLES: Mapping[str, Callable[[Facts], str]] = {
    "cannot connect": _cannot_connect,
    "out of memory": _out_of_memory,
    "unstable results": _unstable,
    "slow aggregation": _slow,
}
