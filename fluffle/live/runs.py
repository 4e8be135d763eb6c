"""The runs below the folders that are watched: found again at every look, read when asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fluffle.aggregator.ledger.reader import LEDGER
from fluffle.live.reading import RunReading

#: Runs that a page can choose among: those that changed last.
MOST_RUNS = 100
#: Whoever looks again within this sees what the one before saw.
_FRESH_S = 0.5
#: What the list says of a run.
_BRIEF = ("label", "name", "status", "version", "of_versions")


class Runs:
    """Run folders, and folders of runs (of a sweep, or ``runs/``). Thread-safe."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self._readings: dict[str, RunReading] = {}
        self._lock = threading.Lock()
        self._looked = -_FRESH_S
        self._list: list[dict[str, Any]] = []

    def state(self, label: str | None) -> dict[str, Any]:
        """``runs``, the newest first, and of the one that is asked for (or the newest) all, as
        ``run``; None where there is none.
        """
        with self._lock:
            if time.monotonic() - self._looked >= _FRESH_S:
                self._find()
                looks = [run for one in self._readings.values() if (run := one.look()) is not None]
                looks.sort(key=lambda run: -run["run_started"])
                self._list = [{k: run[k] for k in _BRIEF} for run in looks]
                self._looked = time.monotonic()
            known = {run["label"] for run in self._list}
            wanted = label if label in known else next(iter(run["label"] for run in self._list), "")
            run = self._readings[wanted].look() if wanted else None
            return {"runs": self._list, "run": run}

    def _find(self) -> None:
        found = [place for folder in self._folders for place in _run_folders(folder)]
        newest = sorted(found, key=lambda one: -one[0])[:MOST_RUNS]
        labels = _labels([folder for _, folder in newest])
        self._readings = {
            label: self._readings.get(label) or RunReading(folder, label)
            for label, (_, folder) in zip(labels, newest, strict=True)
        }


def _run_folders(folder: Path) -> list[tuple[float, Path]]:
    """When each changed, and where: this folder, or the runs one or two levels below it."""
    if (folder / LEDGER).is_file():
        patterns: tuple[str, ...] = (LEDGER,)
    else:
        patterns = (f"*/{LEDGER}", f"*/*/{LEDGER}")
    found = []
    for file in (file for pattern in patterns for file in folder.glob(pattern)):
        with suppress(OSError):  # it has just gone
            found.append((file.parent.stat().st_ctime, file.parent))
    return found


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names; with those of the folders around them where names are not enough."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) == len(names):
        return names
    return [str(Path(*folder.resolve().parts[-3:])) for folder in folders]
