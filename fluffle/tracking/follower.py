"""A follower of a run's ledger, which gives trackers what is new in it."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.summary import CLIENT
from fluffle.aggregator.service import AggregatorService
from fluffle.history import Row, history
from fluffle.schemas import Experiment, UserError
from fluffle.schemas.codec import one_line
from fluffle.schemas.extensions import TRACKER, check_verbs
from fluffle.schemas.user_code import is_custom
from fluffle.tracking.tracker import About, Point, Tracker

EVERY_S = 3.0
#: Versions this far behind the newest get no evaluation any more, until the run is over.
_LOOK_BACK = 1000
#: How long the end of a run waits for what is under way to a tracker.
LEAVE_S = 60.0
_log = logging.getLogger(__name__)
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
#: Columns that are of the run, and those that are no measurements.
_OF_RUN = ("time_s", "updates_total", "staleness_mean", "bytes_up", "bytes_down")
_NO_POINTS = ("version", "made_at", "closed_by", "examples", "updates", "evaluated_examples")
#: How columns begin, and the group of curves that they are shown in.
_GROUPS = {"train_": "training", CLIENT: "by_client"}


def points_of(row: Row) -> Iterator[Point]:
    """A version's measurements: ``evaluation/…``, ``by_client/…``, ``training/…``, ``run/…``."""
    for name, value in row.items():
        if name in _NO_POINTS or value is None:
            continue
        group, short = "run" if name in _OF_RUN else "evaluation", name
        for prefix, other in _GROUPS.items():
            if name.startswith(prefix):
                group, short = other, name.removeprefix(prefix)
        yield Point(f"{group}/{short}", row["version"], float(value), row["made_at"])


class Follower:
    """One tracker's thread."""

    def __init__(self, folder: Path, tracker: Tracker, leads: Callable[[], bool]) -> None:
        """``leads`` says whether this process leads the run: a standby tracks nothing."""
        self._folder = folder
        self._tracker = tracker
        self._leads = leads
        self._ended = threading.Event()
        self._last: dict[str, int] | None = None
        self._from = -1
        self._status = "running"
        self._troubled = ""
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def end(self) -> None:
        """Give what is left, and leave."""
        self._ended.set()
        self._thread.join(LEAVE_S)
        if self._thread.is_alive():
            _log.warning(
                "%s has not taken everything: the same command adds what is left", self._name
            )

    @property
    def _name(self) -> str:
        return type(self._tracker).__name__

    def _follow(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._try(self._look)
        self._from = -1  # late evaluations too
        self._try(self._look)
        if self._last is not None:
            self._try(lambda: self._tracker.close(self._status))

    def _try(self, action: Callable[[], None]) -> None:
        """The network or a disk may fail, and no run shall end because of a curve."""
        try:
            action()
        except Exception as error:
            text = f"{self._name}: {_CREDENTIALS.sub('//', one_line(str(error) or repr(error)))}"
            if text != self._troubled:
                _log.warning("%s; trying again", text)
            self._troubled = text

    def _look(self) -> None:
        if not self._leads():
            return
        try:
            ledger = LedgerReader(self._folder)
        except UserError:  # there is none yet
            return
        try:
            with ledger.snapshot():
                rows, meta = history(ledger, self._from), ledger.meta
        finally:
            ledger.close()
        self._status = meta["status"]
        if self._last is None:
            experiment = Experiment.stored(meta["experiment"])
            name = self._folder.resolve().name
            self._last = self._tracker.open(About(meta["run_id"], name, experiment))
        last = self._last
        new = [p for row in rows for p in points_of(row) if p.step > last.get(p.tag, -1)]
        if new:
            self._tracker.write(new)
            last.update({point.tag: point.step for point in new})
        self._remember(rows)

    def _remember(self, rows: Sequence[Row]) -> None:
        """The next look starts where an evaluation may still be missing."""
        if rows:
            evaluated = [row["version"] for row in rows if "evaluated_examples" in row]
            newest: int = rows[-1]["version"]
            self._from = max([self._from, newest - _LOOK_BACK, *(v - 1 for v in evaluated)])


def trackers(
    tensorboard: Path | None, mlflow: str | None, others: Sequence[str] = ()
) -> list[Tracker]:
    """Those that a person asks for. Raises: UserError where the package is missing.

    others: names of installed packages' trackers, or ``PATH/FILE.py:Class``.
    """
    found: list[Tracker] = [_other(name) for name in others]
    try:
        if tensorboard is not None:
            from fluffle.tracking.tensorboard import TensorBoard

            found.append(TensorBoard(tensorboard))
        if mlflow is not None:
            from fluffle.tracking.mlflow import MLflow

            found.append(MLflow(mlflow))
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        raise UserError(f"{missing} is not installed: pip install 'fluffle[{missing}]'") from None
    return found


def _other(name: str) -> Tracker:
    path = Path(name)
    made: Tracker
    made = TRACKER.make(path.name, folder=path.parent) if is_custom(name) else TRACKER.make(name)
    check_verbs("the tracker", name, made, ("open", "write", "close"))
    return made


@contextmanager
def tracked(service: AggregatorService, followed: Sequence[Tracker]) -> Iterator[None]:
    """Within, what the service records is tracked; at the end all of it has been."""

    def leads() -> bool:
        return service.coordinator is not None or service.outcome is not None

    followers = [Follower(service.folder, tracker, leads) for tracker in followed]
    for follower in followers:
        follower.start()
    try:
        yield
    finally:
        for follower in followers:
            follower.end()
