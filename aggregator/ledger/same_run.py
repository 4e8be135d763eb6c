"""The check that an experiment may resume a run that was started with another file."""

from __future__ import annotations

from typing import Any

from fluffle.schemas.aggregation import keys_of

#: Keys that may differ: they say when to stop, not what is learned; who may come; what it costs;
#: what is taken for an attack. A strategy may have others (``may_change``).
MAY_CHANGE = (
    "participation.residents",
    "participation.assignment_deadline_s",
    "experiment.versions",
    "experiment.target_accuracy",
    "experiment.patience",
    "experiment.min_delta",
    "experiment.max_minutes",
    "evaluation.every_updates",
    "cost.price_per_worker_hour",
    "cost.currency",
    "admission.max_examples",
    "admission.examples_factor",
    "admission.norm_factor",
)


def difference_of(stored: dict[str, Any], given: dict[str, Any]) -> str | None:
    """The first key in which two experiments differ that must not."""
    of_strategy = keys_of(given["aggregation"]["strategy"]).may_change
    may_change = {*MAY_CHANGE, *(f"aggregation.{key}" for key in of_strategy)}
    for table in given:
        before, now = stored.get(table) or {}, given[table] or {}
        if isinstance(before, list) or isinstance(now, list):  # [[update]]: steps in order
            if before != now:
                return table
            continue
        for key in {**before, **now}:
            name = f"{table}.{key}"
            same = before.get(key) == now.get(key)
            if name == "task.validation":  # nothing is a share of nothing
                same = (before.get(key) or 0) == (now.get(key) or 0)
            if name not in may_change and not same:
                return name
    return None
