"""What goes wrong in a schedule, and when: a list of faults, drawn from a seed.

A fault strikes at the n-th event of its kind of trigger, so that a schedule with some of its
faults left out is a schedule too (``minimise`` does that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Fault:
    """``kind`` strikes at the ``n``-th ``KINDS[kind]``; ``seconds`` and ``pick`` shape it."""

    kind: str
    n: int
    seconds: float
    pick: int

    def __str__(self) -> str:
        return f"{self.kind} at {KINDS[self.kind]} {self.n} ({self.seconds:.1f} s, {self.pick})"


#: What each kind of fault counts to find its moment: points that a role's processes pass
#: (between any two effects), attempts to write, confirmed publishes, acks, steps of the scheduler.
KINDS: Mapping[str, str] = {
    # A process ends, and is started again ``seconds`` later.
    "crash-aggregator": "aggregator",
    "crash-worker": "worker",
    # Asked to stop: it ends in an orderly way.
    "stop-aggregator": "aggregator",
    # Does not run for ``seconds``; meanwhile its connection is lost, and with it the lead.
    "freeze-aggregator": "aggregator",
    "freeze-worker": "worker",
    # Reconnects at once: all that it has in hand comes back to the broker.
    "cut-aggregator": "aggregator",
    "cut-worker": "worker",
    # No room for ``seconds``: SQLite and the weights' files both say so.
    "disk-full": "disk",
    # The message is in, its confirm never comes: published again.
    "lost-confirm": "confirm",
    # The connection ends before the broker has the acks.
    "lost-ack": "ack",
    # Down for ``seconds``: transient things are gone, persistent ones stay.
    "broker-restart": "step",
    # A worker, or the evaluator, never gets to see the model that is published.
    "lost-model": "publish",
    # One waiting message: again, last instead of first, not before ``seconds`` have passed, or
    # come back so often that it is suspicious.
    "duplicate": "step",
    "reorder": "step",
    "delay": "step",
    "suspect": "step",
    # What the aggregator has in hand comes back to the broker once too often: dead-lettered.
    "poison": "step",
    # The aggregator's clock goes ``seconds`` ahead.
    "clock-jump": "step",
}

#: About how many of each a schedule without faults has.
_USUAL: Mapping[str, int] = {
    "aggregator": 220, "worker": 160, "disk": 70, "confirm": 40, "ack": 25, "step": 230,
    "publish": 6,
}  # fmt: skip
#: How likely each kind is against the others.
_WEIGHTS: Mapping[str, int] = {
    "crash-aggregator": 6, "crash-worker": 4, "freeze-aggregator": 4, "disk-full": 2,
    "lost-confirm": 3, "duplicate": 2, "delay": 2,
    "cut-aggregator": 2, "poison": 2,
}  # fmt: skip
MOST = 8


def draw(seed: int) -> tuple[Fault, ...]:
    """The faults of one schedule."""
    random = Random(f"faults {seed}")
    weights = [_WEIGHTS.get(kind, 1) for kind in KINDS]
    kinds = random.choices(list(KINDS), weights, k=random.randint(1, MOST))
    return tuple(
        Fault(
            kind,
            1 + int(random.random() * 1.2 * _USUAL[KINDS[kind]]),
            random.choice((0.0, 0.3, 2.0, 8.0)) * random.random(),
            random.randrange(1 << 16),
        )
        for kind in kinds
    )
