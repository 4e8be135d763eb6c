"""Series: runs that differ in nothing but their seed are one line with a band, and one column.

Runs with two or more seeds of one experiment are put together; a run alone is a series of itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fluffle.aggregator.ledger.same_run import MAY_CHANGE
from fluffle.report.data import Run, Updates
from fluffle.settings import differences, given, shown

#: A label has room for so many letters.
_LONGEST = 52
#: They tell no experiments apart.
_UNNAMED = ("experiment.seed", *MAY_CHANGE)
#: Their value says what they are.
_BARE = ("aggregation.strategy", "task.name", "participation.mode", "partition.kind")


@dataclass(frozen=True)
class Series:
    """Runs of one experiment, each with a seed of its own."""

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run that stands for all where only one can be shown."""
        return self.runs[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each run."""
        return tuple(run.experiment.experiment.seed for run in self.runs)


def series_of(runs: Sequence[Run]) -> list[Series]:
    """The series of these runs, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_but_seed(run), []).append(run)
    seeds = [{run.experiment.experiment.seed for run in group} for group in groups.values()]
    alike = all(len(s) == len(group) for s, group in zip(seeds, groups.values(), strict=True))
    if len(groups) == len(runs) or not alike:  # one run twice is no second seed
        return [Series(run.label, (run,)) for run in runs]
    labels = _labels([group[0] for group in groups.values()])
    return [
        Series(label, tuple(group)) for label, group in zip(labels, groups.values(), strict=True)
    ]


def are_groups(series: Sequence[Series]) -> bool:
    """Whether any of them has several seeds."""
    return any(len(one.runs) > 1 for one in series)


def together(series: Series) -> Run:
    """The updates and losses of all seeds as one run, for shares and counts."""
    if len(series.runs) == 1:
        return replace(series.first, label=series.label)
    parts = [run.updates for run in series.runs]
    fields = Updates.__dataclass_fields__
    updates = Updates(
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in fields}
    )

    def added(tables: Sequence[dict[str, int]]) -> dict[str, int]:
        return dict(sum((Counter(table) for table in tables), Counter()))

    return replace(
        series.first,
        label=series.label,
        updates=updates,
        dropouts=sum(run.dropouts for run in series.runs),
        rejected=added([run.rejected for run in series.runs]),
        failures=added([run.failures for run in series.runs]),
    )


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings in which runs differ, as text; those that follow from others are left out.

    A key that only some strategy has, and that holds its default there, says nothing of its own.
    """
    experiments = [run.experiment for run in runs]
    chosen = {name for experiment in experiments for name in given(experiment)}
    chosen |= {"experiment.seed"}
    return {
        name: [shown(value) for value in values]
        for name, values in differences(experiments).items()
        if name in chosen
    }


def _but_seed(run: Run) -> str:
    document = run.experiment.model_dump(mode="json")
    for key in ("seed", "name"):
        del document["experiment"][key]
    # What may change when a run is resumed changes nothing of what is learned.
    document.pop("cost", None)
    return json.dumps([document, run.virtual], sort_keys=True)


def _labels(firsts: Sequence[Run]) -> list[str]:
    """What tells experiments apart, short: what is no default, what a run is called by first."""
    found = {name: v for name, v in differing(firsts).items() if name not in _UNNAMED}
    order = {name: place for place, name in enumerate(_BARE)}
    names = sorted(found, key=lambda name: order.get(name, len(order)))
    short = Counter(name.rpartition(".")[2] for name in names)
    labels = []
    for index, run in enumerate(firsts):
        own, words = given(run.experiment), []
        for name in names:
            if name in own or name == "aggregation.strategy":
                key = name.rpartition(".")[2]
                key = name if short[key] > 1 else key
                words.append(f"{'' if name in _BARE else f'{key} '}{found[name][index]}")
        labels.append(", ".join(words) or run.experiment.experiment.name)
    if len(set(labels)) < len(labels):  # in a default, or in when they stop
        labels = [f"{label} ({run.label})" for label, run in zip(labels, firsts, strict=True)]
    cut = [x if len(x) <= _LONGEST else f"{x[: _LONGEST - 1]}…" for x in labels]
    return labels if len(set(cut)) < len(labels) else cut
