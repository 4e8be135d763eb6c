"""What workers say they sent, held against what the ledger and the broker have.

Every update that a worker's journal calls confirmed has to be found, and nothing may be found that
no journal calls sent::

    confirmed  ⊆  counted + unused + rejected + dead-lettered + queued  ⊆  sent

A worker that is killed between the broker's confirm and its own line leaves an update on the right
that is not on the left; that is why the journal says first what it is about to send. Ids are
counted once, whatever the number of copies: a turn that went back to the broker is trained twice,
and an update whose confirm was lost is published twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pika

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.broker.admin.node import Node
from fluffle.broker.topology import Topology

UPDATE = "client-update"


@dataclass(frozen=True)
class Balance:
    """Update ids by what became of them. ``sent`` and ``confirmed`` say how often."""

    sent: Counter[str]
    confirmed: Counter[str]
    #: Disposition in the ledger -> ids. Each id is there once, by its primary key.
    ledger: Mapping[str, set[str]]
    #: Id -> reason.
    rejected: Mapping[str, str]
    dead: set[str]
    queued: set[str]

    def __str__(self) -> str:
        found = " + ".join(f"{len(ids)} {what}" for what, ids in self._dispositions().items())
        unsure = len(self.sent.keys() - self.confirmed.keys())
        copies = self.confirmed.total() - len(self.confirmed)
        reasons = dict(Counter(self.rejected.values()))
        return (
            f"{len(self.confirmed)} confirmed ({copies} of them once more) and {unsure} sent that "
            f"their worker did not live to see confirmed: {found}; rejected: {reasons or 'none'}"
        )

    def problems(self, one_base: bool) -> list[str]:
        """What does not hold, a line each.

        one_base: an update has the same base version however often it is trained (cohorts). Else
            one copy may be counted and another, trained from another version, be too stale. A copy
            that is dead-lettered nobody has looked at: its turn is issued again in any case.
        """
        dispositions = self._dispositions()
        found = Counter(i for ids in dispositions.values() for i in ids)
        lost = self.confirmed.keys() - found.keys()
        invented = found.keys() - self.sent.keys()
        twice = {
            i
            for i, n in found.items()
            if n > 1 and (n > self.sent[i] or (one_base and i not in self.dead))
        }
        twice -= self.queued  # a copy that nobody has looked at yet
        where = {i: [what for what, ids in dispositions.items() if i in ids] for i in twice}
        return [
            *(f"update {i} was confirmed and is nowhere" for i in sorted(lost)),
            *(f"update {i} is somewhere and nobody sent it" for i in sorted(invented)),
            *(f"update {i} was sent {self.sent[i]} times and is {where[i]}" for i in sorted(twice)),
        ]

    def _dispositions(self) -> dict[str, set[str]]:
        known = {what: self.ledger.get(what, set()) for what in ("counted", "unused", "buffered")}
        return {
            **known,
            "rejected": set(self.rejected),
            "dead-lettered": self.dead,
            "queued": self.queued,
        }


def balance_of(out: Path, journals: Iterable[Path], node: Node) -> Balance:
    """Of a run that has ended; takes what is left on the broker out of its queues."""
    lines = [json.loads(line) for path in journals for line in path.read_text().splitlines()]
    sent, confirmed = (
        Counter(
            str(line["update_id"])
            for line in lines
            if line["what"] == what and line["type"] == UPDATE
        )
        for what in ("sending", "confirmed")
    )
    ledger = Ledger(out)
    by_disposition: dict[str, set[str]] = {}
    for update_id, disposition in ledger.query("SELECT update_id, disposition FROM updates"):
        by_disposition.setdefault(disposition, set()).add(update_id)
    reasons = dict(ledger.query("SELECT message_id, reason FROM rejections"))
    rejected = {i: reason for i, reason in reasons.items() if i in sent}
    ledger.close()
    topology = Topology()
    dead = {i for i, properties in _take(node, topology.rejected.name) if not _ours(properties)}
    queued = {i for i, _ in _take(node, topology.updates.name)}
    return Balance(sent, confirmed, by_disposition, rejected, dead, queued)


def _ours(properties: pika.BasicProperties) -> bool:
    """A copy that the aggregator made, of what the ledger knows as rejected."""
    return "reason" in (properties.headers or {})


def _take(node: Node, queue: str) -> list[tuple[str, pika.BasicProperties]]:
    """The updates in a queue, which is empty afterwards."""
    connection = pika.BlockingConnection(pika.URLParameters(node.url))
    channel = connection.channel()
    taken = []
    while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
        if got[1].type == UPDATE:
            taken.append((str(got[1].message_id), got[1]))
    connection.close()
    return taken
