"""Selection of the next client: a function of the run's seed, the turn and who is busy."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Container, Iterator

import numpy as np

#: Keeps these draws apart from others made from the same seed.
_SALT = 0x5E1EC7
_TRIES = 32


def choose(seed: int, turn: int, clients: int, busy: Container[str]) -> str | None:
    """One client out of ``clients`` that is not busy, at random; None if all are."""
    # Rejection keeps the cost of a turn independent of the number of clients.
    for draw in _draws(seed, turn, clients):
        if str(draw) not in busy:
            return str(draw)
    rng = np.random.default_rng([_SALT, seed, turn])
    # Nearly all are busy: from a random one on in random strides that meet every client once.
    start, stride = int(rng.integers(clients)), _stride(int(rng.integers(1, clients + 1)), clients)
    for i in range(clients):
        name = str((start + i * stride) % clients)
        if name not in busy:
            return name
    return None


def _draws(seed: int, turn: int, clients: int) -> Iterator[int]:
    """``_TRIES`` independent clients. A hash, since to seed a generator takes ten times as long."""
    for block in range(_TRIES // 8):
        digest = hashlib.blake2b(struct.pack("<4Q", _SALT, seed, turn, block)).digest()
        for number in struct.unpack("<8Q", digest):
            yield number % clients


def _stride(wanted: int, clients: int) -> int:
    while math.gcd(wanted, clients) != 1:
        wanted += 1
    return wanted


def choose_cohort(seed: int, turn: int, clients: int, size: int) -> list[str]:
    """``size`` different clients, uniformly, in client order."""
    rng = np.random.default_rng([_SALT, seed, turn])
    chosen = rng.choice(clients, size=size, replace=False)
    return [str(client) for client in np.sort(chosen)]


def client_order(client: str) -> tuple[int, str]:
    """Sorts client ids: numbers by value, names after them."""
    return (int(client), "") if client.isdecimal() else (2**62, client)
