"""Fairness: how clients differ in what the global model does for them."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluffle.report.data import Run
from fluffle.report.style import PLAIN, WIDTH, Empty, colour, legend_above, line


def by_client(runs: list[Run]) -> Figure:
    """Accuracy of the worst tenth of clients down to the worst one, and how far all lie apart."""
    measured = [run for run in runs if np.isfinite(run.evaluations.client_worst).any()]
    if not measured:
        raise Empty("")
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    worst, spread = figure.subplots(1, 2)
    for index, run in enumerate(runs):
        seen = run.evaluations
        x = run.versions.updates[seen.version]
        marker = {"marker": "o" if len(x) < 12 else None, "markersize": 3}
        low, tenth = seen.client_worst * 100, seen.client_tenth * 100
        worst.plot(x, tenth, **marker, **line(index))
        worst.fill_between(x, low, tenth, color=colour(index), alpha=0.2, linewidth=0)
        spread.plot(x, seen.client_std * 100, **marker, **line(index))
    worst.set_ylabel("accuracy of the worst tenth (%)")
    spread.set_ylabel("standard deviation (points)")
    spread.set_ylim(bottom=0)
    for axes in (worst, spread):
        axes.set_xlabel("updates counted")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PLAIN)
    if len(runs) > 1:
        legend_above(figure, [run.label for run in runs], list(worst.lines))
    return figure
