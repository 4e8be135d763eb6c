"""The tables of a report, as text that is ready to be read: a column for each series of runs.

Of several seeds a cell has the mean and the standard deviation of the sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fluffle.aggregator.ledger.privacy import ADJACENCY
from fluffle.aggregator.ledger.sums import Traffic
from fluffle.report.comparison import last_measured, main_metric, paired
from fluffle.report.costs import Spent, common_currency, reached, spent, target_of
from fluffle.report.data import Floats, Run
from fluffle.report.series import Series, are_groups, differing, series_of
from fluffle.report.style import digits, seconds_unit
from fluffle.schemas.sizes import bytes_unit

#: A name, then a cell for each series: what it says, and how it compares with the first.
Row = tuple[str, list[tuple[str, str]]]
Value = Callable[[Run], float | None]
#: A mean and a deviation, None for one value alone, as text.
Form = Callable[[float, float | None], str]


def facts(runs: list[Run]) -> dict[str, list[str]]:
    """What the runs are and what they did: a name, then a cell for each series."""
    series = series_of(runs)
    rows: dict[str, Callable[[Series], str]] = {
        "strategy": _same(_strategy),
        "task": _same(
            lambda run: f"{run.experiment.task.name}, {run.experiment.everybody:,} clients"
        ),
        "status": _statuses,
        "accuracy at the end": _mean(partial(last_measured, metric="accuracy"), _percents),
        "best accuracy": _mean(_best, _percents),
        **_others(runs),
        "worst client": _mean(lambda run: _last(run.evaluations.client_worst), _percents),
        "clients' spread": _mean(
            lambda run: _last(run.evaluations.client_std), partial(_percents, unit="points")
        ),
        "own models, mean": _personal("accuracy_mean"),
        "own models, worst client": _personal("accuracy_worst"),
        "own models' spread": _personal("accuracy_std", "points"),
        "versions": _mean(lambda run: len(run.versions.made_s) - 1, _counts),
        "updates counted": _mean(lambda run: float(run.versions.updates[-1]), _counts),
        "time": _times,
        "sent": _mean(lambda run: _sent(run.traffic), _sizes),
        "sent in vain": _in_vain,
        "dropouts": _mean(lambda run: run.dropouts, _counts),
        "rejected": _mean(lambda run: sum(run.rejected.values()), _counts),
        "failures": _mean(lambda run: sum(run.failures.values()), _counts),
        "privacy": _same(_privacy),
        "privacy, but": _same(_caveats),
        "worker-hours": _mean(lambda run: _all(run).worker_hours, _digits),
        "cost": _costs,
    }
    table = {name: [cell(one) for one in series] for name, cell in rows.items()}
    return {name: cells for name, cells in table.items() if set(cells) != {"–"}}


def settings(runs: list[Run]) -> dict[str, list[str]]:
    """In which settings the series differ, and their seeds; nothing for one run alone."""
    if len(runs) < 2:
        return {}
    series = series_of(runs)
    rows = differing([one.first for one in series])
    rows.pop("experiment.seed", None)
    return rows | {"seed": [_seeds(one) for one in series]}


def to_target(runs: list[Run]) -> list[Row]:
    """What each series had spent when it reached the target accuracy; empty without a target."""
    target = target_of(runs)
    if target is None:
        return []
    series = series_of(runs)
    there = [[_at_target(run, target) for run in one.runs] for one in series]
    has_cost = any(s is not None and s.cost is not None for group in there for s in group)
    currency = common_currency(runs)
    measures: list[tuple[str, Callable[[Spent], float | None], Form]] = [
        ("updates", lambda s: s.updates, _counts),
        ("time", lambda s: s.time_s, _durations),
        ("sent", lambda s: s.bytes, _sizes),
        ("worker-hours", lambda s: s.worker_hours, _digits),
    ]
    if has_cost:
        measures.append(("cost", lambda s: s.cost, _digits))
    rows: list[Row] = []
    for name, value, form in measures:
        # Seconds of one clock are no seconds of another, nor is one currency the other.
        alike = len({run.virtual for run in runs}) == 1 or name in ("updates", "sent")
        alike = alike and (name != "cost" or currency is not None)
        first = _average([value(s) for s in there[0] if s is not None]) if alike else None
        cells = []
        for index, (one, group) in enumerate(zip(series, there, strict=True)):
            got = [s for s in group if s is not None]
            if not got:
                cells.append((_never(one), ""))
                continue
            found = [v for s in got if (v := value(s)) is not None]
            text = _spread(found, form)
            if name == "cost" and found and (table := one.first.experiment.cost):
                text = f"{text} {table.currency}"
            if len(got) < len(group):
                text = f"{text} ({len(got)} of {len(group)} reach it)"
            mine = _average(found)
            ratio = f"{digits(mine / first, 2)} ×" if index and first and mine is not None else ""
            cells.append((text, ratio))
        rows.append((name, cells))
    return rows


def comparison(runs: list[Run]) -> tuple[str, list[tuple[str, str, str, str]]]:
    """The metric, and how each series differs in it from the first over their common seeds: label,
    difference with its 95 % confidence interval, p, seeds. Empty where no series has two seeds, or
    without SciPy.
    """
    series, metric = series_of(runs), main_metric(runs)
    if not are_groups(series) or len(series) < 2:
        return metric, []
    by, unit = (100, " points") if metric == "accuracy" else (1, "")
    rows = []
    for other in series[1:]:
        try:
            found = paired(series[0], other, metric)
        except ModuleNotFoundError:
            return metric, []
        if found is None:
            rows.append((other.label, "–", "–", "no two common seeds"))
            continue
        value, half = found.difference * by, found.half_width * by
        sure = f"{value:+.3g}{unit} [{value - half:+.3g}, {value + half:+.3g}]"
        p = "below 0.001" if found.p < 0.001 else f"{found.p:.2g}"
        rows.append((other.label, sure, p, str(found.seeds)))
    return metric, rows


# ---- cells


def _same(text: Callable[[Run], str]) -> Callable[[Series], str]:
    return lambda series: text(series.first)


def _mean(value: Value, form: Form) -> Callable[[Series], str]:
    return lambda series: _spread([v for r in series.runs if (v := value(r)) is not None], form)


def _spread(values: Sequence[float], form: Form) -> str:
    if not values:
        return "–"
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return form(float(np.mean(values)), spread)


def _average(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _others(runs: list[Run]) -> dict[str, Callable[[Series], str]]:
    """What tasks measure beside accuracy, at the end; the loss where there is no accuracy."""
    names = sorted({name for run in runs for name in run.evaluations.others})
    if not all(np.isfinite(run.evaluations.accuracy).any() for run in runs):
        names = ["loss", *names]
    return {
        f"{name.replace('_', ' ')} at the end": _mean(partial(last_measured, metric=name), _digits)
        for name in names
    }


def _statuses(series: Series) -> str:
    texts = [run.status + f": {run.detail}" * (run.status == "failed") for run in series.runs]
    counts = Counter(texts)
    if len(counts) == 1:
        return texts[0]
    return ", ".join(f"{count} {text}" for text, count in counts.most_common())


def _times(series: Series) -> str:
    text = _spread([run.elapsed_s for run in series.runs], _durations)
    return f"{text}{' (virtual)' if series.first.virtual else ''}"


def _costs(series: Series) -> str:
    table = series.first.experiment.cost
    costs = [cost for run in series.runs if (cost := _all(run).cost) is not None]
    return "–" if table is None else f"{_spread(costs, _digits)} {table.currency}"


def _seeds(series: Series) -> str:
    seeds = series.seeds
    if len(seeds) == 1:
        return str(seeds[0])
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) if len(seeds) <= 6 else f"{len(seeds)} seeds"


def _strategy(run: Run) -> str:
    experiment = run.experiment
    who = (
        f"cohorts of {experiment.concurrency:,}"
        if experiment.participation.mode == "cohort"
        else f"{experiment.concurrency:,} in flight"
    )
    if experiment.residents:
        who = f"{who}, {len(experiment.residents):,} residents"
    mu = experiment.training.proximal_mu
    name = experiment.aggregation.strategy + (f" with FedProx, mu = {mu:g}" if mu else "")
    return f"{name}, K = {experiment.quorum:,}, {who}"


def _privacy(run: Run) -> str:
    table = run.experiment.privacy
    if table is None or not len(run.epsilon):
        return "–"
    return f"epsilon {digits(run.epsilon[-1])}, delta {table.delta:g} ({ADJACENCY})"


def _caveats(run: Run) -> str:
    """What may have broken it."""
    return "; ".join(run.privacy["caveats"]) if run.privacy and run.privacy["caveats"] else "–"


def _never(series: Series) -> str:
    best = _spread([v for run in series.runs if (v := _best(run)) is not None], _percents)
    who = "not reached" if len(series.runs) == 1 else f"none of {len(series.runs)} reach it"
    return f"{who}, best {best}"


# ---- values


def _at_target(run: Run, target: float) -> Spent | None:
    version = reached(run, target)
    return None if version is None else spent(run, version)


def _all(run: Run) -> Spent:
    return spent(run, len(run.versions.made_s) - 1)


def _best(run: Run) -> float | None:
    measured = run.evaluations.accuracy[np.isfinite(run.evaluations.accuracy)]
    return float(measured.max()) if len(measured) else None


def _last(values: Floats) -> float | None:
    """The last of these that was measured."""
    measured = values[np.isfinite(values)]
    return float(measured[-1]) if len(measured) else None


def _personal(name: str, unit: str = "%") -> Callable[[Series], str]:
    """Of clients' own models."""
    return _mean(lambda run: run.personal.get(name), partial(_percents, unit=unit))


# ---- forms


def _percents(value: float, spread: float | None, unit: str = "%") -> str:
    around = "" if spread is None else f" ± {spread * 100:.1f}"
    return f"{value * 100:.1f}{around} {unit}"


def _counts(value: float, spread: float | None) -> str:
    return f"{value:,.0f}" + (f" ± {digits(spread, 2)}" if spread else "")


def _digits(value: float, spread: float | None) -> str:
    return digits(value) + ("" if spread is None else f" ± {digits(spread, 2)}")


def _durations(value: float, spread: float | None) -> str:
    by, unit = seconds_unit(value)
    return f"{_digits(value / by, None if spread is None else spread / by)} {unit}"


def _sizes(value: float, spread: float | None) -> str:
    by, unit = bytes_unit(int(value))
    return f"{_digits(value / by, None if not spread else spread / by)} {unit}"


def _sent(traffic: dict[str, Traffic]) -> int:
    return sum(t.bytes_up + t.bytes_down for t in traffic.values())


def _in_vain(series: Series) -> str:
    """What travelled and counts in no version, and the dispositions of most of it."""
    others = [{k: t for k, t in run.traffic.items() if k != "counted"} for run in series.runs]
    if not any(others):
        return "–"
    messages: Counter[str] = Counter()
    for one in others:
        messages.update({name: traffic.messages for name, traffic in one.items()})
    told = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in messages.most_common(3))
    all_of = "" if len(others) == 1 else ", all seeds together"
    return f"{_spread([_sent(one) for one in others], _sizes)} ({told}{all_of})"
