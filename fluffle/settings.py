"""Settings of experiments, by their full names: which are not defaults, and where runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluffle.schemas import Experiment
from fluffle.schemas.table import Table
from fluffle.schemas.toml_text import value_text

#: A key's value in a run where the key does not count.
NOTHING = None


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """TABLE.KEY -> value of every key that holds, in the file's order; ``[[update]]`` whole."""
    return dict(_flat("", experiment.model_dump(mode="json", exclude_none=True)))


def given(experiment: Experiment) -> dict[str, Any]:
    """The settings that are not what they would be in an empty file, and the strategy."""
    strategy = {"strategy": experiment.aggregation.strategy}
    defaults = settings_of(Experiment.model_validate({}))
    for name in type(experiment).model_fields:
        if isinstance(table := getattr(experiment, name), Table):
            fields = type(table).model_fields.items()
            defaults |= {f"{name}.{key}": field.default for key, field in fields}
    own = type(experiment.aggregation).model_validate(strategy).model_dump(exclude_none=True)
    defaults |= {f"aggregation.{key}": value for key, value in own.items()}
    found = settings_of(experiment)
    named = ("task.name", "aggregation.strategy")
    return {k: v for k, v in found.items() if k in named or defaults.get(k) != v}


def differences(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    """The keys in which experiments differ, with the value in each; ``NOTHING`` where it has none.

    ``experiment.name`` is a name and no setting, and is left out.
    """
    tables = [settings_of(experiment) for experiment in experiments]
    names = list(dict.fromkeys(name for table in tables for name in table))
    found = {}
    for name in names:
        values = [table.get(name, NOTHING) for table in tables]
        if name != "experiment.name" and any(value != values[0] for value in values):
            found[name] = values
    return found


def shown(value: Any) -> str:
    """A value as a person reads it in a table: text without quotes, long tables cut."""
    if value is NOTHING:
        return "–"
    if isinstance(value, str):
        return value if len(value) <= 40 else f"{value[:39]}…"
    return value_text(value)


def _flat(prefix: str, table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in table.items():
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            rows += _flat(name, value)
        elif value != []:
            rows.append((name, value))
    return rows
