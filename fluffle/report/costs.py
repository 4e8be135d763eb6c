"""Costs of a run: worker-hours, their price, and all of it at the target accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fluffle.report.data import Floats, Run


@dataclass(frozen=True)
class Spent:
    """What it took to get somewhere."""

    updates: int
    time_s: float
    bytes: int
    worker_hours: float
    #: None where the experiment has no price.
    cost: float | None


def worker_hours(run: Run, until_s: Floats) -> Floats:
    """Worker-hours from the run's beginning until these seconds; same shape.

    Under the virtual clock every client in flight has a worker to itself, all the time: M workers.
    Under the real clock a worker counts from its first turn to the version of its last update.
    """
    if run.virtual:
        return np.asarray(until_s * run.experiment.concurrency / 3600, float)
    counted = run.updates.version > 0
    workers = run.updates.worker[counted]
    sent_s = run.versions.made_s[run.updates.version[counted]]
    began_s = np.maximum(0.0, sent_s - run.updates.response_s[counted])
    total = np.zeros(np.shape(until_s))
    for worker in np.unique(workers):
        first, last = began_s[workers == worker].min(), sent_s[workers == worker].max()
        total += np.clip(until_s, first, last) - first
    return total / 3600


def spent(run: Run, version: int) -> Spent:
    """What had been spent when this version was made."""
    made_s = run.versions.made_s[version]
    hours = float(worker_hours(run, np.array([made_s]))[0])
    table = run.experiment.cost
    return Spent(
        updates=int(run.versions.updates[version]),
        time_s=float(made_s),
        bytes=int(run.versions.bytes[version]),
        worker_hours=hours,
        cost=None if table is None else hours * table.price_per_worker_hour,
    )


def reached(run: Run, target: float) -> int | None:
    """The first measured version with at least this accuracy; None if there is none."""
    there = run.evaluations.version[run.evaluations.decisive >= target]
    return int(there[0]) if len(there) else None


def target_of(runs: list[Run]) -> float | None:
    """The target accuracy of the first run that has one."""
    targets = (run.experiment.experiment.target_accuracy for run in runs)
    return next((target for target in targets if target is not None), None)


def common_currency(runs: list[Run]) -> str | None:
    """The currency in which all runs have a price; None if there is none."""
    currencies = {run.experiment.cost.currency if run.experiment.cost else None for run in runs}
    return currencies.pop() if len(currencies) == 1 else None
