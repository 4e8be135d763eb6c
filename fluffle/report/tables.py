"""The tables of a report, as text that is ready to be read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from fluffle.aggregator.ledger.privacy import ADJACENCY
from fluffle.aggregator.ledger.sums import Traffic
from fluffle.report.costs import Spent, common_currency, reached, spent, target_of
from fluffle.report.data import Floats, Run
from fluffle.report.style import digits, seconds_unit
from fluffle.schemas.sizes import bytes_unit

#: A name, then a cell for each run: what it says, and how it compares with the first run.
Row = tuple[str, list[tuple[str, str]]]


def facts(runs: list[Run]) -> dict[str, list[str]]:
    """What the runs are and what they did: a name, then a cell for each run."""
    rows: dict[str, Callable[[Run], str]] = {
        "strategy": _strategy,
        "task": lambda run: f"{run.experiment.task.name}, {run.experiment.everybody:,} clients",
        "status": lambda run: run.status + f": {run.detail}" * (run.status == "failed"),
        "accuracy at the end": lambda run: _accuracy(run, -1),
        "best accuracy": lambda run: _best(run),
        **_others(runs),
        "worst client": lambda run: _percent(run.evaluations.client_worst),
        "clients' spread": lambda run: _percent(run.evaluations.client_std, "points"),
        "versions": lambda run: f"{len(run.versions.made_s) - 1:,}",
        "updates counted": lambda run: f"{run.versions.updates[-1]:,}",
        "time": lambda run: f"{_seconds(run.elapsed_s)}{' (virtual)' if run.virtual else ''}",
        "sent": lambda run: _bytes(_sent(run.traffic)),
        "sent in vain": _in_vain,
        "dropouts": lambda run: f"{run.dropouts:,}",
        "rejected": lambda run: f"{sum(run.rejected.values()):,}",
        "failures": lambda run: f"{sum(run.failures.values()):,}",
        "privacy": _privacy,
        "privacy, but": _caveats,
        "worker-hours": lambda run: digits(_all(run).worker_hours),
        "cost": lambda run: _money(run, _all(run).cost),
    }
    table = {name: [cell(run) for run in runs] for name, cell in rows.items()}
    return {name: cells for name, cells in table.items() if set(cells) != {"–"}}


def _others(runs: list[Run]) -> dict[str, Callable[[Run], str]]:
    """What tasks measure beside accuracy, at the end; the loss where there is no accuracy."""
    names = sorted({name for run in runs for name in run.evaluations.others})
    if not all(np.isfinite(run.evaluations.accuracy).any() for run in runs):
        names = ["loss", *names]

    def last(run: Run, name: str) -> str:
        measured = run.evaluations.of(name)
        measured = measured[np.isfinite(measured)]
        return digits(measured[-1]) if len(measured) else "–"

    return {f"{n.replace('_', ' ')} at the end": partial(last, name=n) for n in names}


def to_target(runs: list[Run]) -> list[Row]:
    """What each run had spent when it reached the target accuracy; empty without a target."""
    target = target_of(runs)
    if target is None:
        return []
    reaching = [reached(run, target) for run in runs]
    there = [
        None if version is None else spent(run, version)
        for run, version in zip(runs, reaching, strict=True)
    ]
    measures: list[tuple[str, Callable[[Spent], float | None], Callable[[Run, Spent], str]]] = [
        ("updates", lambda s: s.updates, lambda run, s: f"{s.updates:,}"),
        ("time", lambda s: s.time_s, lambda run, s: _seconds(s.time_s)),
        ("sent", lambda s: s.bytes, lambda run, s: _bytes(s.bytes)),
        ("worker-hours", lambda s: s.worker_hours, lambda run, s: digits(s.worker_hours)),
    ]
    if any(s is not None and s.cost is not None for s in there):
        measures.append(("cost", lambda s: s.cost, lambda run, s: _money(run, s.cost)))
    rows: list[Row] = []
    for name, value, text in measures:
        # Seconds of one clock are no seconds of another, nor is one currency the other.
        alike = len({run.virtual for run in runs}) == 1 or name in ("updates", "sent")
        alike = alike and (name != "cost" or common_currency(runs) is not None)
        first = value(there[0]) if there[0] is not None and alike else None
        cells = []
        for index, (run, s) in enumerate(zip(runs, there, strict=True)):
            if s is None:
                cells.append((f"not reached, best {_best(run)}", ""))
                continue
            mine = value(s)
            ratio = f"{digits(mine / first, 2)} ×" if index and first and mine is not None else ""
            cells.append((text(run, s), ratio))
        rows.append((name, cells))
    return rows


def _strategy(run: Run) -> str:
    experiment = run.experiment
    who = (
        f"cohorts of {experiment.concurrency:,}"
        if experiment.participation.mode == "cohort"
        else f"{experiment.concurrency:,} in flight"
    )
    if experiment.residents:
        who = f"{who}, {len(experiment.residents):,} residents"
    return f"{experiment.aggregation.strategy}, K = {experiment.quorum:,}, {who}"


def _privacy(run: Run) -> str:
    table = run.experiment.privacy
    if table is None or not len(run.epsilon):
        return "–"
    return f"epsilon {digits(run.epsilon[-1])}, delta {table.delta:g} ({ADJACENCY})"


def _caveats(run: Run) -> str:
    """What may have broken it."""
    return "; ".join(run.privacy["caveats"]) if run.privacy and run.privacy["caveats"] else "–"


def _all(run: Run) -> Spent:
    return spent(run, len(run.versions.made_s) - 1)


def _accuracy(run: Run, index: int) -> str:
    measured = run.evaluations.accuracy[np.isfinite(run.evaluations.accuracy)]
    return f"{measured[index] * 100:.1f} %" if len(measured) else "–"


def _best(run: Run) -> str:
    measured = run.evaluations.accuracy[np.isfinite(run.evaluations.accuracy)]
    return f"{measured.max() * 100:.1f} %" if len(measured) else "–"


def _percent(values: Floats, unit: str = "%") -> str:
    """The last of these that was measured."""
    measured = values[np.isfinite(values)]
    return f"{measured[-1] * 100:.1f} {unit}" if len(measured) else "–"


def _seconds(value: float) -> str:
    by, unit = seconds_unit(value)
    return f"{digits(value / by)} {unit}"


def _sent(traffic: dict[str, Traffic]) -> int:
    return sum(t.bytes_up + t.bytes_down for t in traffic.values())


def _in_vain(run: Run) -> str:
    """What travelled and counts in no version, and the dispositions of most of it."""
    others = {name: t for name, t in run.traffic.items() if name != "counted"}
    if not others:
        return "–"
    most = sorted(others, key=lambda name: -others[name].messages)[:3]
    told = ", ".join(f"{others[name].messages:,} {name.replace('_', ' ')}" for name in most)
    return f"{_bytes(_sent(others))} ({told})"


def _bytes(value: int) -> str:
    by, unit = bytes_unit(value)
    return f"{digits(value / by)} {unit}"


def _money(run: Run, cost: float | None) -> str:
    table = run.experiment.cost
    return "–" if cost is None or table is None else f"{digits(cost)} {table.currency}"
