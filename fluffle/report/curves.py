"""Curves: what was measured by anything that grows with the versions, a line for each series.

Of several seeds the line is the mean and the band a standard deviation (of the sample) to each
side, over the stretch that all of them have; between two evaluations a run is taken to go straight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from fluffle.report.costs import common_currency, target_of, worker_hours
from fluffle.report.data import Floats, Run
from fluffle.report.series import Series, are_groups, series_of
from fluffle.report.style import (
    MUTED,
    PLAIN,
    WIDTH,
    Empty,
    colour,
    legend_above,
    line,
    seconds_unit,
)
from fluffle.schemas import UserError
from fluffle.schemas.sizes import bytes_unit

X = Callable[[Run], Floats]
#: With so many evaluations the lowest tenth is left out of the picture.
_MANY = 10
#: Beside each other; what a task measures besides is in the table.
_PANELS = 3


def by_time(runs: Sequence[Run]) -> tuple[X, str]:
    """The time at which a version was made."""
    by, unit = seconds_unit(max(run.elapsed_s for run in runs))
    clocks = {run.clock for run in runs}
    clock = clocks.pop() if len(clocks) == 1 else "time (real or virtual)"
    return lambda run: run.versions.made_s / by, f"{clock} ({unit})"


def by_updates(runs: Sequence[Run]) -> tuple[X, str]:
    """The updates counted until then."""
    return lambda run: run.versions.updates.astype(float), "updates counted"


def by_bytes(runs: Sequence[Run]) -> tuple[X, str]:
    """What counted updates had carried, both ways."""
    by, unit = bytes_unit(max(run.versions.bytes[-1] for run in runs))
    return lambda run: run.versions.bytes / by, f"models and updates sent ({unit})"


def by_cost(runs: Sequence[Run]) -> tuple[X, str]:
    """Money, or worker-hours where there is no price."""
    currency = common_currency(list(runs))

    def spent(run: Run) -> Floats:
        hours = worker_hours(run, run.versions.made_s)
        table = run.experiment.cost
        return hours * table.price_per_worker_hour if currency and table else hours

    return spent, f"cost ({currency})" if currency else "worker-hours"


AXES = {"time": by_time, "updates": by_updates, "bytes": by_bytes, "cost": by_cost}


def one_metric(runs: Sequence[Run], metric: str, by: str) -> Figure:
    """A figure of one metric. Raises: UserError where no run has measured it."""
    measured = sorted({n for run in runs for n in metrics_of(run)})
    if metric not in measured:
        raise UserError(f"there is no metric {metric!r}: these runs have {', '.join(measured)}")
    x_of, x_label = AXES[by](runs)
    return _figure(list(runs), [metric], x_of, x_label, WIDTH * 0.72)


def progress(runs: list[Run], x_of: X, x_label: str) -> Figure:
    """What was measured, a panel each. Raises: Empty."""
    others = sorted({name for run in runs for name in run.evaluations.others})
    found = [
        name
        for name in ("accuracy", "loss", *others)
        if any(np.isfinite(run.evaluations.of(name)).any() for run in runs)
    ][:_PANELS]
    if not found:
        raise Empty("no version has been evaluated (evaluation.every_updates)")
    return _figure(runs, found, x_of, x_label, WIDTH)


def metrics_of(run: Run) -> list[str]:
    """The names of what a run has measured."""
    names = ("accuracy", "loss", *run.evaluations.others)
    return [name for name in names if np.isfinite(run.evaluations.of(name)).any()]


def band(series: Series, x_of: X, name: str) -> tuple[Floats, Floats, Floats]:
    """x, mean and standard deviation of a metric over a series' runs; 0 for a run alone."""
    curves = []
    for run in series.runs:
        y = run.evaluations.of(name)
        x = x_of(run)[run.evaluations.version]
        there = np.isfinite(y)
        curves.append((x[there], y[there]))
    curves = [(x, y) for x, y in curves if len(x)]
    if len(series.runs) == 1 or not curves:
        x, y = curves[0] if curves else (np.zeros(0), np.zeros(0))
        return x, y, np.zeros_like(y)
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    x = np.unique(np.concatenate([x for x, _ in curves]))
    x = x[(x >= low) & (x <= high)]
    values = np.array([np.interp(x, *curve) for curve in curves])
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(x))
    return x, values.mean(axis=0), spread


def _figure(runs: list[Run], names: list[str], x_of: X, x_label: str, width: float) -> Figure:
    series = series_of(runs)
    labels = [
        one.label + (f" ({len(one.runs)} seeds)" if are_groups(series) else "") for one in series
    ]
    shown = labels if len(series) > 1 or are_groups(series) else []
    figure = Figure(figsize=(width, 2.6), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    target = target_of(runs)
    for axes, name in zip(panels, names, strict=True):
        by = 100 if name == "accuracy" else 1
        drawn = []
        for index, one in enumerate(series):
            x, mean, spread = band(one, x_of, name)
            marker = "o" if len(x) < 12 else None
            axes.plot(x, mean * by, marker=marker, markersize=3, label=one.label, **line(index))
            if len(one.runs) > 1:
                low, high = (mean - spread) * by, (mean + spread) * by
                axes.fill_between(x, low, high, color=colour(index), alpha=0.16, linewidth=0)
            drawn.append(mean)
        axes.set_xlabel(x_label)
        axes.set_ylabel("accuracy (%)" if name == "accuracy" else name.replace("_", " "))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PLAIN)
        _scale(axes, name, np.concatenate(drawn), target)
        if name == "accuracy" and target is not None:
            _mark(axes, target)
    if shown:
        legend_above(figure, shown, list(panels[0].lines)[: len(series)])
    return figure


def _mark(axes: Axes, target: float) -> None:
    """A line at the target, named outside of the curves: at the right end of the axis."""
    axes.axhline(target * 100, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0.5)
    axes.annotate(
        f"target {target * 100:.4g} %",
        xy=(1, target * 100),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        color=MUTED,
        size=7,
        ha="left",
        va="center",
        rotation=90,
        annotation_clip=False,
    )


def _scale(axes: Axes, name: str, values: Floats, target: float | None) -> None:
    """Room for the part in which runs differ: their first steps look alike."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    if name == "loss":
        if values.min() > 0 and values.max() > 5 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
    elif name == "accuracy" and len(values) >= _MANY:
        low = float(np.percentile(values, 10))
        top = max(float(values.max()), target or 0.0)
        axes.set_ylim(
            bottom=max(0.0, low - (top - low) * 0.1) * 100, top=(top * 1.1 - low * 0.1) * 100
        )
    axes.yaxis.set_major_formatter(PLAIN)


def drawn_by(name: str) -> Callable[[list[Run]], Figure]:
    """The figure of all metrics by one axis."""

    def draw(runs: list[Run]) -> Figure:
        return progress(runs, *AXES[name](runs))

    return partial(draw)
