"""What goes wrong, when, with whom and for how long: a function of the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "stop", "latency", "half-open", "reset", "refuse", "alarm"]

AGGREGATOR = "aggregator"
WORKERS = ("worker-0", "worker-1")
#: It has no network to fail: it is what all others connect to.
BROKER = "broker"


@dataclass(frozen=True)
class Fault:
    """One fault. ``lasts_s`` later what it did is undone: started again, woken up, healed."""

    kind: Kind
    target: str
    #: Since the fault before.
    after_s: float
    lasts_s: float
    #: Without waiting for the run to recover from the one before.
    at_once: bool
    #: latency: of every piece of up to 64 KB, each way.
    latency_s: float

    def __str__(self) -> str:
        latency = f" of {self.latency_s:.2f} s" if self.kind == "latency" else ""
        return f"{self.kind}{latency} {self.target} for {self.lasts_s:.1f} s"


#: What a round has: a SIGKILL of each kind of member, and one of everything else. ``alarm``: the
#: broker is out of memory and takes no messages.
_ROUND: Sequence[tuple[Kind, Sequence[str]]] = (
    ("kill", [AGGREGATOR]),
    ("kill", WORKERS),
    ("kill", [BROKER]),
    ("stop", [AGGREGATOR, *WORKERS, BROKER]),
    ("latency", [AGGREGATOR, *WORKERS]),
    ("half-open", [AGGREGATOR, *WORKERS]),
    ("reset", [AGGREGATOR, *WORKERS]),
    ("refuse", [AGGREGATOR, *WORKERS]),
    ("alarm", [BROKER]),
)


def draw(seed: int, count: int) -> list[Fault]:
    """``count`` faults, in rounds of random order, so that no kind is left out by chance."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    while len(faults) < count:
        faults += [_draw_one(rng, *kind) for kind in rng.sample(_ROUND, len(_ROUND))]
    return faults[:count]


def _draw_one(rng: random.Random, kind: Kind, targets: Sequence[str]) -> Fault:
    return Fault(
        kind=kind,
        target=rng.choice(targets),
        after_s=rng.uniform(0.0, 2.0),
        # A stop of 2 heartbeats and more costs the connection.
        lasts_s=rng.uniform(1.0, 9.0) if kind == "stop" else rng.uniform(0.2, 3.0),
        at_once=rng.random() < 0.3,
        latency_s=rng.uniform(0.05, 0.4),
    )
