"""The front door: command line, run wiring, reports; and what tasks and strategies of one's own are
made of.

``from fluffle import Task, Strategy`` imports neither TensorFlow nor the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aggregator.strategies.base import State, Strategy
    from aggregator.strategies.tree import (
        add_to_buffer,
        buffered,
        mean_of,
        next_version,
        with_model,
    )
    from schemas import ClientUpdate, Tensors
    from worker.client_data import ClientData
    from worker.files.arrays import read_npz
    from worker.files.images import read_images
    from worker.files.tables import read_csv, read_parquet
    from worker.task import Examples, StreamedTask, Task

__all__ = [
    "ClientData",
    "ClientUpdate",
    "Examples",
    "State",
    "Strategy",
    "StreamedTask",
    "Task",
    "Tensors",
    "add_to_buffer",
    "buffered",
    "mean_of",
    "next_version",
    "read_csv",
    "read_images",
    "read_npz",
    "read_parquet",
    "with_model",
]

_HOMES = {
    "ClientData": "worker.client_data",
    "read_npz": "worker.files.arrays",
    "read_images": "worker.files.images",
    **dict.fromkeys(("read_csv", "read_parquet"), "worker.files.tables"),
    **dict.fromkeys(("Examples", "StreamedTask", "Task"), "worker.task"),
    **dict.fromkeys(("State", "Strategy"), "aggregator.strategies.base"),
    **dict.fromkeys(
        ("add_to_buffer", "buffered", "mean_of", "next_version", "with_model"),
        "aggregator.strategies.tree",
    ),
    **dict.fromkeys(("ClientUpdate", "Tensors"), "schemas"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"fluffle has no {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
