"""The figures, one small function each: runs in, a Matplotlib figure out, or ``Empty`` with why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fluffle.aggregator.ledger.privacy import ADJACENCY
from fluffle.report.clients import participation, response_times, timeline
from fluffle.report.confusion import confusion
from fluffle.report.curves import drawn_by
from fluffle.report.data import Run
from fluffle.report.fairness import by_client
from fluffle.report.style import (
    INK,
    PLAIN,
    WIDTH,
    Empty,
    colour,
    legend_above,
    line,
)

#: Kinds of lost turns that are shown; the rarer ones are added up.
_KINDS = 10
#: More shares than these, laid over each other, are lines alone.
_FILLED = 4
#: Staleness up to here has a bar for each value.
_BARS = 60


@dataclass(frozen=True)
class Picture:
    """A figure's name (of its files), and what is said around it."""

    name: str
    title: str
    caption: str
    draw: Callable[[list[Run]], Figure]
    #: Which runs it is drawn of: "all", and it puts seeds together itself; all seeds of a series as
    #: if they were one run, "together"; or the "first" seed of each.
    of: str = "all"


by_time, by_updates, by_bytes, by_cost = (
    drawn_by(name) for name in ("time", "updates", "bytes", "cost")
)


def staleness(runs: list[Run]) -> Figure:
    """The share of counted updates by staleness."""
    counted = [run.updates.staleness[run.updates.version > 0] for run in runs]
    if not any(map(len, counted)):
        raise Empty("no update has been counted yet")
    most = max(int(values.max(initial=0)) for values in counted)
    edges = np.arange(0, most + 2, max(1, -(-most // _BARS))) - 0.5
    edges = np.append(edges, edges[-1] + edges[1] - edges[0]) if edges[-1] < most else edges
    figure = Figure(figsize=(WIDTH * 0.72, 2.6), layout="constrained")
    axes = figure.subplots()
    labels = []
    for index, (run, values) in enumerate(zip(runs, counted, strict=True)):
        shares = np.histogram(values, edges)[0] / max(1, len(values)) * 100
        if len(runs) <= _FILLED:
            axes.stairs(shares, edges, fill=True, color=colour(index), alpha=0.25)
        axes.stairs(shares, edges, linewidth=1.5, label=run.label, **line(index))
        mean = values.mean() if len(values) else 0
        labels.append(f"{run.label}: {mean:.1f} on average, at most {values.max(initial=0)}")
    axes.set_xlabel("staleness (versions)")
    axes.set_ylabel("counted updates (%)")
    axes.set_xlim(-0.5, max(edges[-1], 3.5))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    outlines = [patch for patch in axes.patches if patch.get_label() in {r.label for r in runs}]
    legend_above(figure, labels, outlines, columns=1)
    return figure


def privacy(runs: list[Run]) -> Figure:
    """Epsilon by the updates counted until then."""
    told = [(index, run) for index, run in enumerate(runs) if len(run.epsilon)]
    if not told:
        raise Empty  # few runs have it: not worth a word
    figure = Figure(figsize=(WIDTH * 0.72, 2.6), layout="constrained")
    axes = figure.subplots()
    for index, run in told:
        axes.step(run.versions.updates, run.epsilon, where="post", label=run.label, **line(index))
    axes.set_xlabel("updates counted")
    deltas = {run.experiment.privacy.delta for _, run in told if run.experiment.privacy}
    axes.set_ylabel("epsilon" + (f" (delta = {deltas.pop():g})" if len(deltas) == 1 else ""))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(PLAIN)
    if len(runs) > 1:
        legend_above(figure, [run.label for _, run in told], list(axes.lines))
    return figure


def losses(runs: list[Run]) -> Figure:
    """Turns that brought nothing: dropouts, rejected messages by reason, failures by reason."""
    tables = [_lost(run) for run in runs]
    totals: dict[str, int] = {}
    for table in tables:
        for kind, count in table.items():
            totals[kind] = totals.get(kind, 0) + count
    if not totals:
        raise Empty("there was no dropout, no rejected message and no failure")
    kinds = sorted(totals, key=lambda kind: -totals[kind])
    rare = kinds[_KINDS:]
    kinds = [*kinds[:_KINDS], *(["other reasons"] if rare else [])]
    height = 0.7 / len(runs)
    rows = len(kinds) * len(runs)
    figure = Figure(
        figsize=(WIDTH, 0.9 + max(0.28 * len(kinds), 0.19 * rows)), layout="constrained"
    )
    axes = figure.subplots()
    for index, (run, table) in enumerate(zip(runs, tables, strict=True)):
        counts = [table.get(kind, 0) for kind in kinds[:_KINDS]]
        counts += [sum(table.get(kind, 0) for kind in rare)] if rare else []
        places = np.arange(len(kinds)) + (index - (len(runs) - 1) / 2) * height
        bars = axes.barh(places, counts, height * 0.9, color=colour(index), label=run.label)
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=3, size=8, color=INK)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.xaxis.set_major_formatter(PLAIN)
    axes.margins(x=0.1)
    axes.set_xlabel("count")
    if len(runs) > 1:
        legend_above(figure, [run.label for run in runs], list(axes.containers))
    return figure


def _lost(run: Run) -> dict[str, int]:
    named = {"dropouts": run.dropouts}
    if run.turns is not None:
        named["lost by a simulated device"] = int((run.turns.outcome == "lost").sum())
    named |= {f"rejected: {reason}": count for reason, count in run.rejected.items()}
    named |= {f"failed: {reason}": count for reason, count in run.failures.items()}
    return {kind: count for kind, count in named.items() if count}


PICTURES = (
    Picture(
        "accuracy-by-time",
        "Loss and metrics by time",
        "A version counts from when it was made, however long its evaluation took. The lowest "
        "tenth of many accuracies is below the axis.",
        by_time,
    ),
    Picture(
        "accuracy-by-updates",
        "Loss and metrics by updates",
        "Updates counted in versions.",
        by_updates,
    ),
    Picture(
        "accuracy-by-bytes",
        "Loss and metrics by bytes",
        "What counted updates carried: the model to the client and the update back.",
        by_bytes,
    ),
    Picture(
        "accuracy-by-cost",
        "Loss and metrics by cost",
        "Worker-hours, times their price if the experiment has one ([cost]). Under the virtual "
        "clock each client in flight has a worker of its own, all the time; under the real clock a "
        "worker counts from its first turn to its last update.",
        by_cost,
    ),
    Picture(
        "accuracy-by-client",
        "Accuracy by client",
        "From the accuracy that nine of ten clients reach (line) down to the worst client's (edge "
        "of the band), and how far clients lie apart. On test examples of a client's own, or else "
        "with labels as frequent as among its training examples.",
        by_client,
        "first",
    ),
    Picture(
        "confusion",
        "Confusion matrix",
        "Of the test examples of each true class, the share in percent that the last version takes "
        "for each class.",
        confusion,
        "first",
    ),
    Picture(
        "staleness",
        "Staleness",
        "How many versions were made while a client trained.",
        staleness,
        "together",
    ),
    Picture(
        "response-times",
        "Response time by client and version",
        "Virtual clock: from fetching the model to the update's arrival. Real clock: the slot's "
        "time since its last turn ended, waiting included. By the version that was trained on; the "
        "mean where a cell has several updates, grey where it has none.",
        response_times,
        "first",
    ),
    Picture(
        "participation",
        "Participation by client speed",
        "Clients in ten groups by their mean response time. At 1 a group counts as often as the "
        "average; bars that fall to the right mean that fast clients shape the model more.",
        participation,
        "together",
    ),
    Picture(
        "timeline",
        "Who trained when",
        "The first turns of clients from the fastest to the slowest. Thin lines are versions, "
        "where there is room for them.",
        timeline,
        "first",
    ),
    Picture(
        "privacy",
        "Privacy",
        "What the versions so far reveal of the client who took part most, whatever its data: "
        "(epsilon, delta)-differential privacy against whoever sees models and not updates. Which "
        f"runs are neighbours: {ADJACENCY}.",
        privacy,
        "first",
    ),
    Picture(
        "losses",
        "Dropouts, rejected messages, failures",
        "A dropout is a turn that brought nothing within its deadline. What a simulated device "
        "lost is one too, unless its round had ended before.",
        losses,
        "together",
    ),
)
