"""Uniform selection: every client that may be chosen, with the same probability."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fluffle.aggregator.selections.base import SALT, Moment, Selection

_TRIES = 32


class Uniform(Selection):
    """Everybody alike."""

    def choose(self, moment: Moment, size: int) -> Sequence[str]:
        """A cohort without replacement, in client order; else one client."""
        if not moment.together:
            one = choose(moment.seed, moment.turn, moment.clients, moment.may)
            return [] if one is None else [one]
        names = moment.candidates
        chosen = moment.generator().choice(len(names), size=min(size, len(names)), replace=False)
        return [names[i] for i in np.sort(chosen)]


def choose(seed: int, turn: int, clients: int, may: Callable[[str], bool]) -> str | None:
    """One client out of ``clients`` that may be chosen, at random; None if none may."""
    # Rejection keeps the cost of a turn independent of the number of clients.
    for draw in _draws(seed, turn, clients):
        if may(str(draw)):
            return str(draw)
    rng = np.random.default_rng([SALT, seed, turn])
    # Nearly nobody may: from a random one on in random strides that meet every client once.
    start, stride = int(rng.integers(clients)), _stride(int(rng.integers(1, clients + 1)), clients)
    for i in range(clients):
        name = str((start + i * stride) % clients)
        if may(name):
            return name
    return None


def _draws(seed: int, turn: int, clients: int) -> Iterator[int]:
    """``_TRIES`` independent clients. A hash, since to seed a generator takes ten times as long."""
    for block in range(_TRIES // 8):
        digest = hashlib.blake2b(struct.pack("<4Q", SALT, seed, turn, block)).digest()
        for number in struct.unpack("<8Q", digest):
            yield number % clients


def _stride(wanted: int, clients: int) -> int:
    while math.gcd(wanted, clients) != 1:
        wanted += 1
    return wanted
