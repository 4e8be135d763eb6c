"""A paired comparison of series over their common seeds, at the end of their runs.

A seed deals the same data out and draws the same weights in every series, so that what differs
within a seed is the method: Student's t-test of the differences, seed by seed, two-sided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fluffle.report.data import Run
from fluffle.report.series import Series


@dataclass(frozen=True)
class Paired:
    """How a series differs from another, both with these seeds."""

    seeds: int
    #: Mean of the differences, and half the width of its 95 % confidence interval.
    difference: float
    half_width: float
    #: The chance of such a difference, or a larger one, where there is none.
    p: float


def last_measured(run: Run, metric: str) -> float | None:
    """A metric at the last evaluation that has it."""
    values = run.evaluations.of(metric)
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else None


def main_metric(runs: Sequence[Run]) -> str:
    """Accuracy where every run measures it, else the loss."""
    every = all(last_measured(run, "accuracy") is not None for run in runs)
    return "accuracy" if every else "loss"


def paired(first: Series, other: Series, metric: str) -> Paired | None:
    """``other`` minus ``first``; None with fewer than two common seeds.

    Raises: ModuleNotFoundError without SciPy.
    """
    from scipy import stats

    before = dict(zip(first.seeds, first.runs, strict=True))
    pairs = [
        (last_measured(before[seed], metric), last_measured(run, metric))
        for seed, run in zip(other.seeds, other.runs, strict=True)
        if seed in before
    ]
    differences = np.array([b - a for a, b in pairs if a is not None and b is not None])
    count = len(differences)
    if count < 2:
        return None
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / count**0.5
    if error == 0:
        return Paired(count, mean, 0.0, 1.0 if mean == 0 else 0.0)
    t = stats.t(count - 1)
    return Paired(count, mean, error * float(t.ppf(0.975)), 2 * float(t.sf(abs(mean) / error)))
