"""The front door: runs and sweeps from Python and from the command line, reports; and what tasks
and strategies of one's own are made of.

``import fluffle`` imports neither TensorFlow, pandas, Matplotlib nor the command line.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluffle.aggregator.selections.base import Selection
    from fluffle.aggregator.strategies.base import State, Strategy
    from fluffle.aggregator.strategies.operations import (
        add_to_buffer,
        buffered,
        mean_of,
        next_version,
        with_model,
    )
    from fluffle.aggregator.triggers.base import Held, Trigger
    from fluffle.api.random_search import Range
    from fluffle.api.runs import Run, Verified
    from fluffle.api.start import Stopped, load, run
    from fluffle.api.sweeps import Sweep, SweepStopped, sweep
    from fluffle.schemas import ClientUpdate, Experiment, Tensors, UserError
    from fluffle.worker.files.arrays import read_npz
    from fluffle.worker.files.images import read_images
    from fluffle.worker.files.tables import read_csv, read_parquet
    from fluffle.worker.tasks.arrays import ArrayTask
    from fluffle.worker.tasks.client_data import ClientData
    from fluffle.worker.tasks.task import Examples, StreamedTask, Task
    from fluffle.worker.training.algorithms.base import After, Algorithm, Phase, Turn

__all__ = [
    "After",
    "Algorithm",
    "ArrayTask",
    "ClientData",
    "ClientUpdate",
    "Examples",
    "Experiment",
    "Held",
    "Phase",
    "Range",
    "Run",
    "Selection",
    "State",
    "Stopped",
    "Strategy",
    "StreamedTask",
    "Sweep",
    "SweepStopped",
    "Task",
    "Tensors",
    "Trigger",
    "Turn",
    "UserError",
    "Verified",
    "add_to_buffer",
    "buffered",
    "load",
    "mean_of",
    "next_version",
    "read_csv",
    "read_images",
    "read_npz",
    "read_parquet",
    "run",
    "sweep",
    "with_model",
]

# Who uses Fluffle as a library decides what is logged, and where.
logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    **dict.fromkeys(("Run", "Verified"), "fluffle.api.runs"),
    **dict.fromkeys(("Stopped", "load", "run"), "fluffle.api.start"),
    "Range": "fluffle.api.random_search",
    **dict.fromkeys(("Sweep", "SweepStopped", "sweep"), "fluffle.api.sweeps"),
    "ArrayTask": "fluffle.worker.tasks.arrays",
    **dict.fromkeys(("Held", "Trigger"), "fluffle.aggregator.triggers.base"),
    "Selection": "fluffle.aggregator.selections.base",
    "ClientData": "fluffle.worker.tasks.client_data",
    "read_npz": "fluffle.worker.files.arrays",
    "read_images": "fluffle.worker.files.images",
    **dict.fromkeys(("read_csv", "read_parquet"), "fluffle.worker.files.tables"),
    **dict.fromkeys(("Examples", "StreamedTask", "Task"), "fluffle.worker.tasks.task"),
    **dict.fromkeys(
        ("After", "Algorithm", "Phase", "Turn"), "fluffle.worker.training.algorithms.base"
    ),
    **dict.fromkeys(("State", "Strategy"), "fluffle.aggregator.strategies.base"),
    **dict.fromkeys(
        ("add_to_buffer", "buffered", "mean_of", "next_version", "with_model"),
        "fluffle.aggregator.strategies.operations",
    ),
    **dict.fromkeys(("ClientUpdate", "Experiment", "Tensors", "UserError"), "fluffle.schemas"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"fluffle has no {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
