"""TensorBoard: event files in a folder of their own for each run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

# TensorBoard's own switch against importing TensorFlow where there is one: files are all it needs.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # noqa: E402
from tensorboard.summary import Writer  # noqa: E402

from fluffle.tracking.tracker import About, Point  # noqa: E402


class TensorBoard:
    """Writes into ``folder/<run id>``; point TensorBoard at ``folder`` to compare runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, about: About) -> dict[str, int]:
        """The last steps in the event files that are there. A torn record ends its file."""
        folder = self._folder / about.run_id
        last: dict[str, int] = {}
        for path in sorted(folder.glob("events.out.tfevents.*")):
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    last[value.tag] = max(event.step, last.get(value.tag, -1))
        self._writer = Writer(str(folder))
        return last

    def write(self, points: Sequence[Point]) -> None:
        """Append them to the event file."""
        for point in points:
            self._writer.add_scalar(point.tag, point.value, point.step, wall_time=point.at)
        self._writer.flush()

    def close(self, status: str) -> None:
        """Close the event file."""
        self._writer.close()
