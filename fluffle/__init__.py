"""The front door: command line, run wiring, reports; and what a task of one's own is made of.

``from fluffle import Examples, Task`` imports neither TensorFlow nor the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.task import Examples, Task

__all__ = ["Examples", "Task"]

_HOMES = {"Examples": "worker.task", "Task": "worker.task"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"fluffle has no {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
