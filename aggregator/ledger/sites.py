"""Sites of a run, one by one: what the ledger knows of each name on the allow-list.

A site's user on the broker has its name, so that what was rejected of it is known by the sender.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from fluffle.aggregator.ledger.reader import LedgerReader


@dataclass
class Site:
    """One resident client."""

    name: str
    counted: int = 0
    #: In the open buffer, or unused as the run was over.
    others: int = 0
    failed: int = 0
    rejected: int = 0
    #: The base version of its newest recorded update.
    version: int | None = None
    #: When the ledger last recorded something of it, in seconds since 1970.
    seen_at: float | None = None


def sites(ledger: LedgerReader) -> list[Site]:
    """Every name on the allow-list, in its order; none where the run has no residents."""
    participation = json.loads(ledger.meta["experiment"]).get("participation") or {}
    found = {name: Site(name) for name in participation.get("residents") or []}
    if not found:
        return []
    for name, disposition, updates, base, made_at in ledger.query(
        "SELECT u.client, u.disposition, COUNT(*), MAX(u.base_version), MAX(v.made_at)"
        " FROM updates u LEFT JOIN versions v ON v.version = u.version"
        " WHERE u.client GLOB '*[^0-9]*' GROUP BY 1, 2"
    ):
        if (site := found.get(name)) is not None:
            if disposition == "counted":
                site.counted += updates
            else:
                site.others += updates
            site.version = max(base, -1 if site.version is None else site.version)
            _seen(site, made_at)
    for name, times, at in ledger.query(
        "SELECT client, TOTAL(times), MAX(at) FROM failures GROUP BY 1"
    ):
        if (site := found.get(name)) is not None:
            site.failed = int(times)
            _seen(site, at)
    for name, times, at in ledger.query(
        "SELECT sender, TOTAL(times), MAX(at) FROM rejections GROUP BY 1"
    ):
        if (site := found.get(name)) is not None:
            site.rejected = int(times)
            _seen(site, at)
    return list(found.values())


def _seen(site: Site, at: float | None) -> None:
    if at is not None:
        site.seen_at = max(at, site.seen_at or 0.0)
