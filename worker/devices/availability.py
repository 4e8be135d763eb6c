"""Availability of a client: the next time from now at which it can start."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from functools import cache

import numpy as np

from fluffle.schemas.device_tables import Row, rows_of
from fluffle.schemas.experiment import DevicesTable
from fluffle.worker.devices.draws import generator

#: Seconds since the run began -> the first time from then on at which the client is available.
NextStart = Callable[[str, float], float]

#: diurnal: a client is available or not for a whole one of so many parts of the period.
_PARTS = 48


def next_start(table: DevicesTable, seed: int) -> NextStart:
    """The rule of an experiment."""
    match table.availability:
        case "diurnal":
            return _diurnal(seed, table.period_s or 86_400.0, table.available or 0.5)
        case "on_off":
            return _on_off(seed, table.on_s or 600.0, table.off_s or 600.0)
        case "trace":
            return _trace(rows_of(table.trace or ""))
        case _:
            return lambda client, now: now


def _diurnal(seed: int, period_s: float, available: float) -> NextStart:
    """p(t) = a + min(a, 1 - a) sin(2 pi (t / period + phase)), drawn anew in each part.

    Its mean is a, and it goes down to 0 or up to 1, whichever is nearer.
    """
    part_s = period_s / _PARTS
    swing = min(available, 1 - available)

    @cache
    def phase(client: int) -> float:
        return float(generator("phase", seed, client).random())

    def is_on(client: int, part: int) -> bool:
        p = available + swing * math.sin(2 * math.pi * ((part + 0.5) / _PARTS + phase(client)))
        return float(generator("slot", seed, client, part).random()) < p

    def start(client: str, now: float) -> float:
        part = int(now // part_s)
        if is_on(int(client), part):
            return now
        while not is_on(int(client), part):
            part += 1
        return part * part_s

    return start


def _on_off(seed: int, on_s: float, off_s: float) -> NextStart:
    """Alternating exponential times on and off (a two-state Markov chain), stationary at 0."""

    @cache
    def changes(client: int) -> tuple[list[float], bool, np.random.Generator]:
        rng = generator("on_off", seed, client)
        return [0.0], bool(rng.random() < on_s / (on_s + off_s)), rng

    def start(client: str, now: float) -> float:
        times, first_is_on, rng = changes(int(client))
        while times[-1] <= now:
            is_on = first_is_on == (len(times) % 2 == 1)
            times.append(times[-1] + rng.exponential(on_s if is_on else off_s))
        interval = bisect_right(times, now) - 1
        is_on = first_is_on == (interval % 2 == 0)
        return now if is_on else times[interval + 1]

    return start


def _trace(rows: list[Row]) -> NextStart:
    """Rows client, start, end in seconds; it repeats after its last end."""
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for client, begin, end in rows:
        spans[str(int(client))].append((begin, end))
    length = max(end for of_one in spans.values() for _, end in of_one)
    for of_one in spans.values():
        of_one.sort()

    def start(client: str, now: float) -> float:
        rounds, within = divmod(now, length)
        for begin, end in spans.get(client, ()):
            if within < end:
                return max(now, rounds * length + begin)
        if client not in spans:
            return math.inf
        return (rounds + 1) * length + spans[client][0][0]

    return start
