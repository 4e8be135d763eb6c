"""A tracker: where curves go, and what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fluffle.schemas import Experiment


class Point(NamedTuple):
    """One measurement: ``at`` is Unix time, ``step`` the version."""

    tag: str
    step: int
    value: float
    at: float


@dataclass(frozen=True)
class About:
    """What a tracker shows of the run as a whole."""

    run_id: str
    name: str
    experiment: Experiment


class Tracker(Protocol):
    """Where curves go. Used by one thread. Any method may raise: it is tried again.

    >>> class Printed:
    ...     def open(self, about): return {}
    ...     def write(self, points):
    ...         for point in points: print(point.tag, point.step, point.value)
    ...     def close(self, status): print(status)
    >>> Printed().write([Point("evaluation/accuracy", 3, 0.5, 0.0)])
    evaluation/accuracy 3 0.5
    """

    def open(self, about: About) -> dict[str, int]:
        """Begin, or go on: the last step of each tag that is there already."""
        ...

    def write(self, points: Sequence[Point]) -> None:
        """Durable, or on the server, when it returns."""
        ...

    def close(self, status: str) -> None:
        """The run has ended like that; "running" if it was stopped."""
        ...


def scalars(experiment: Experiment) -> dict[str, Any]:
    """The experiment's keys, table.key, that are set."""
    tables = experiment.model_dump(mode="json", exclude_none=True)
    return {
        f"{table}.{key}": value
        for table, keys in tables.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }
