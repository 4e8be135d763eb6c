"""Who is next: a function of the run's seed, the turn and who is busy. Nothing is remembered."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

#: Keeps these draws apart from others made from the same seed.
_SALT = 0x5E1EC7
_TRIES = 32


def choose(seed: int, turn: int, clients: int, busy: Container[str]) -> str | None:
    """One client out of ``clients`` that is not busy, uniformly; None if all are."""
    rng = np.random.default_rng([_SALT, seed, turn])
    # Rejection keeps the cost of a turn independent of the number of clients.
    for draw in rng.integers(clients, size=_TRIES):
        if str(draw) not in busy:
            return str(draw)
    idle = [name for name in map(str, range(clients)) if name not in busy]
    return idle[int(rng.integers(len(idle)))] if idle else None


def choose_cohort(seed: int, turn: int, clients: int, size: int) -> list[str]:
    """``size`` different clients, uniformly, in client order."""
    rng = np.random.default_rng([_SALT, seed, turn])
    chosen = rng.choice(clients, size=size, replace=False)
    return [str(client) for client in np.sort(chosen)]


def client_order(client: str) -> tuple[int, str]:
    """Sorts client ids: numbers by value, names after them."""
    return (int(client), "") if client.isdecimal() else (2**62, client)
