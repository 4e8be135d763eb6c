"""The figures that tell clients apart: how fast each is, how often it counts, when it trained."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fluffle.report.data import Floats, Ints, Run, Turns
from fluffle.report.style import (
    HEAT,
    INK,
    MUTED,
    NOTHING,
    PLAIN,
    SERIES,
    WIDTH,
    Empty,
    colour,
    legend_above,
    seconds_unit,
)

#: A heat map has room for so many rows and columns; more share one.
_ROWS, _COLUMNS = 80, 60
#: With so few clients each has its name at the axis.
_NAMED = 15
#: What a timeline has room for.
_LANES, _TURNS, _VERSIONS = 24, 300, 60
_GROUPS = 10


def response_times(runs: list[Run]) -> Figure:
    """A heat map for each run: clients from fast to slow, base versions, seconds."""
    shown = [run for run in runs if len(run.updates.client)]
    if not shown:
        raise Empty("no update has arrived yet")
    maps = [_cells(run) for run in shown]
    values = np.concatenate([cells[np.isfinite(cells)] for cells, _ in maps])
    low, high = float(values.min()), float(values.max())
    skewed = low > 0 and high > 10 * low
    norm = LogNorm(low, high) if skewed else Normalize(0, high)
    heights = [min(2.6, 0.7 + 0.14 * len(cells)) for cells, _ in maps]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, run, (cells, names) in zip(panels, shown, maps, strict=True):
        last = max(1, run.updates.base_version.max() + 1)
        image = axes.imshow(
            *[np.ma.masked_invalid(cells)],
            **{"aspect": "auto", "interpolation": "nearest", "cmap": HEAT, "norm": norm},
            extent=(-0.5, last - 0.5, len(cells) - 0.5, -0.5),
        )
        axes.set_facecolor(NOTHING)
        if len(runs) > 1:
            axes.set_title(run.label)
        _name_rows(axes, names, run)
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    cohort = all(run.experiment.participation.mode == "cohort" for run in shown)
    panels[-1].set_xlabel("round" if cohort else "version that was trained on")
    bar = figure.colorbar(
        image,  # pyright: ignore[reportPossiblyUnboundVariable]
        ax=list(panels),
        pad=0.015,
        aspect=18 * len(shown),
    )
    bar.set_label("response time (s)")
    if skewed:
        bar.ax.yaxis.set_minor_formatter(PLAIN if high < 30 * low else lambda value, place: "")
    bar.ax.yaxis.set_major_formatter(PLAIN)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    return figure


def participation(runs: list[Run]) -> Figure:
    """Counted updates per client, relative to the mean, by tenths of the clients' speed."""
    shares = [_participation(run) for run in runs]
    if not any(len(share) > 1 for share, _ in shares):
        raise Empty("fewer than two clients have had an update counted")
    figure = Figure(figsize=(WIDTH * 0.72, 2.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(runs)
    for index, (share, _) in enumerate(shares):
        places = (np.arange(len(share)) + 0.5) * _GROUPS / max(1, len(share)) + 0.5
        places += (index - (len(runs) - 1) / 2) * width
        axes.bar(places, share, width * 0.92, color=colour(index))
    axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_xticks(range(1, _GROUPS + 1))
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("clients by speed, in tenths: fastest to slowest")
    axes.set_ylabel("updates per client\n(mean = 1)")
    labels = [
        f"{run.label}: {count:,} of {run.experiment.everybody:,} clients counted"
        for run, (_, count) in zip(runs, shares, strict=True)
    ]
    legend_above(figure, labels, list(axes.containers), columns=1)
    return figure


def timeline(runs: list[Run]) -> Figure:
    """Turns as bars, a lane for each client; a panel for each run that has events."""
    shown = [(run, run.turns) for run in runs if run.turns is not None and len(run.turns.client)]
    if not shown:
        raise Empty("only runs under the virtual clock write who trained when (events.jsonl)")
    lanes = [_lanes(turns) for _, turns in shown]
    until_s = min(_window(turns, who) for (_, turns), who in zip(shown, lanes, strict=True))
    by, unit = seconds_unit(until_s)
    heights = [0.55 + 0.095 * len(who) for who in lanes]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.7), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, (run, turns), who in zip(panels, shown, lanes, strict=True):
        made_s = run.versions.made_s[run.versions.made_s <= until_s]
        for at in made_s if len(made_s) <= _VERSIONS else ():
            axes.axvline(at / by, color=MUTED, linewidth=0.4, zorder=0)
        _bars(axes, turns, who, until_s, by)
        axes.set_xlim(0, until_s / by)
        axes.set_ylim(len(who) - 0.4, -0.6)
        axes.set_yticks(range(len(who)), who if len(who) <= _NAMED else [""] * len(who))
        axes.set_ylabel("client" if len(who) <= _NAMED else "slow  ← client →  fast")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        if len(runs) > 1:
            axes.set_title(run.label)
    panels[-1].set_xlabel(f"virtual time ({unit})")
    panels[-1].xaxis.set_major_formatter(PLAIN)
    handles = [figure.axes[0].barh([0], [0], color=c, label=n) for n, c in _OUTCOMES.values()]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(_OUTCOMES))
    return figure


#: What became of a turn: how it is called, and its colour.
_OUTCOMES = {
    "arrived": ("brought an update", SERIES[0]),
    "lost": ("lost", SERIES[1]),
    "stopped": ("stopped, too old", SERIES[2]),
    "open": ("not over at the end", MUTED),
}


def _bars(axes: Axes, turns: Turns, who: NDArray[np.str_], until_s: float, by: float) -> None:
    lane = {client: index for index, client in enumerate(who)}
    gap = until_s * 0.002
    for outcome, (_, fill) in _OUTCOMES.items():
        chosen = (turns.outcome == outcome) & np.isin(turns.client, who) & (turns.start_s < until_s)
        start, end = turns.start_s[chosen], turns.end_s[chosen]
        drawn = np.maximum(end - start - gap, gap)
        rows = [lane[client] for client in turns.client[chosen]]
        axes.barh(rows, drawn / by, 0.72, left=start / by, color=fill, linewidth=0)


def _window(turns: Turns, who: NDArray[np.str_]) -> float:
    """The time in which these clients have as many turns as can be told apart."""
    of = np.isin(turns.client, who)
    last = np.sort(turns.start_s[of])[: _TURNS + 1]
    return float(last[-1]) if len(last) > _TURNS else float(turns.end_s[of].max())


def _lanes(turns: Turns) -> NDArray[np.str_]:
    """Clients from fastest to slowest, evenly chosen where there are many."""
    names, index = np.unique(turns.client, return_inverse=True)
    took = turns.end_s - turns.start_s
    order = np.argsort(_means(index, took, len(names)), kind="stable")
    chosen = np.linspace(0, len(names) - 1, min(len(names), _LANES)).round().astype(int)
    return np.asarray(names[order[chosen]])


def _means(index: NDArray[np.intp], values: Floats, groups: int) -> Floats:
    counts = np.bincount(index, minlength=groups)
    return np.asarray(np.bincount(index, values, groups) / np.maximum(1, counts), float)


def _by_speed(run: Run) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    """Clients from fastest to slowest, and the rank of each update's client."""
    names, index = np.unique(run.updates.client, return_inverse=True)
    order = np.argsort(_means(index, run.updates.response_s, len(names)), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return names[order], rank[index]


def _cells(run: Run) -> tuple[Floats, NDArray[np.str_]]:
    """Mean response time, shape (rows, columns), NaN where there is none; clients by speed."""
    names, rank = _by_speed(run)
    versions = max(1, int(run.updates.base_version.max()) + 1)
    rows, columns = min(len(names), _ROWS), min(versions, _COLUMNS)
    row = rank * rows // len(names)
    column = run.updates.base_version * columns // versions
    cell = row * columns + column
    counts = np.bincount(cell, minlength=rows * columns)
    sums = np.bincount(cell, run.updates.response_s, rows * columns)
    cells = np.where(counts > 0, sums / np.maximum(1, counts), np.nan)
    return cells.reshape(rows, columns), names


def _name_rows(axes: Axes, names: NDArray[np.str_], run: Run) -> None:
    if len(names) <= _NAMED:
        axes.set_yticks(range(len(names)), names)
        axes.set_ylabel("client")
    else:
        rows = min(len(names), _ROWS)
        axes.set_yticks([0, rows - 1], ["fastest", "slowest"])
        axes.set_ylabel(f"{len(names):,} clients")


def _participation(run: Run) -> tuple[Floats, int]:
    """Updates per client by group, the mean being 1; and how many clients have any counted."""
    counted: NDArray[np.bool_] = run.updates.version > 0
    names, rank = _by_speed(run)
    each: Ints = np.bincount(rank[counted], minlength=len(names))
    if not each.any():
        return np.zeros(0), 0
    groups = np.array_split(each, min(_GROUPS, len(each)))
    return np.array([group.mean() for group in groups]) / each.mean(), int((each > 0).sum())
