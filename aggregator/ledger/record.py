"""The record of a run for people: its experiment as a file that runs, and what it ran with.

``experiment.toml`` has every setting that holds, defaults included; ``environment.json`` the
versions of packages on the machine that led, an entry for each time that they were others.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fluffle.aggregator.ledger.disk import sync_folder
from fluffle.schemas import Experiment
from fluffle.schemas.device_tables import HARDWARE_COLUMNS, TRACE_COLUMNS, rows_of
from fluffle.schemas.toml_text import to_toml

EXPERIMENT, ENVIRONMENT = "experiment.toml", "environment.json"
#: Tables of [devices] that an experiment file names by a path: file and columns.
TABLES = {
    "trace": ("trace.csv", tuple(TRACE_COLUMNS)),
    "hardware": ("hardware.csv", tuple(HARDWARE_COLUMNS)),
}
FILES = (EXPERIMENT, ENVIRONMENT, *(name for name, _ in TABLES.values()))
#: What numbers depend on, where it is installed.
_PACKAGES = (
    *("fluffle", "numpy", "ml-dtypes", "msgpack", "pydantic", "pika", "keras", "tensorflow"),
    *("tensorflow-cpu", "jax", "torch", "scikit-learn", "dp-accounting"),
)


def write_record(folder: Path, experiment: Experiment) -> None:
    """Write both into a run folder. Raises: OSError."""
    document = experiment.model_dump(mode="json", exclude_none=True)
    devices = document.get("devices") or {}
    for key, (name, columns) in TABLES.items():
        if key in devices:
            rows = [",".join(map(str, row)) for row in rows_of(devices[key])]
            _replace(folder / name, "\n".join([",".join(columns), *rows]) + "\n")
            devices[key] = name
    head = f"# Every setting of the run in this folder; fluffle run {EXPERIMENT} runs it again.\n\n"
    _replace(folder / EXPERIMENT, head + to_toml(document))
    known = read_environments(folder)
    now = _environment()
    if not known or {k: v for k, v in known[-1].items() if k != "since"} != now:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        lines = json.dumps([*known, {"since": since, **now}], indent=1)
        _replace(folder / ENVIRONMENT, lines + "\n")


def read_environments(folder: Path) -> list[dict[str, Any]]:
    """What the run has been led with so far, the newest last; empty where nobody wrote it down."""
    try:
        found = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) and all(isinstance(e, dict) for e in found) else []


@cache
def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "byte_order": sys.byteorder,
        "packages": dict(_versions()),
    }


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a loss of power leaves an empty file under the old one's name
    new.replace(path)
    sync_folder(path.parent)
