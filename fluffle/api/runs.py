"""A run as an object: its numbers as tables, its model, its curves, and whether it is whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluffle.aggregator.ledger.damage import blamed
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.summary import summarise
from fluffle.api.tables import frame, history_rows, update_rows
from fluffle.schemas import Experiment, Tensors, UserError
from fluffle.schemas.extensions import FOLDER

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Verified:
    """What the checks of a run found; true where nothing is wrong."""

    #: What is wrong, a line each.
    problems: tuple[str, ...]
    #: What a replay recomputed, in a line; None where none was asked for.
    replayed: str | None = None

    def __bool__(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        if self.problems:
            return "wrong: " + "; ".join(self.problems)
        return "ok" + (f": {self.replayed}" if self.replayed else "")


class Run:
    """A run in its folder, finished or not. Everything is read when it is asked for.

    >>> run = fl.load("runs/first")                                         # doctest: +SKIP
    >>> run.accuracy, run.history["accuracy"].max()                         # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, *, code: str | Path | None = None) -> None:
        """
        folder: the run folder. code: that of a task from a file, where ``model`` is asked for.
        Raises: UserError where there is no run.
        """
        self.folder = Path(folder)
        self.code = None if code is None else Path(code)
        with self._ledger() as ledger:
            self._meta = ledger.meta
        if "experiment" not in self._meta:
            raise UserError(f"{self.folder} holds no run yet")

    # ---- what it is

    @property
    def id(self) -> str:
        """The run's id, which no other has."""
        return self._meta["run_id"]

    @property
    def clock(self) -> str:
        """ "real" or "virtual"."""
        return self._meta.get("clock", "real")

    @cached_property
    def experiment(self) -> Experiment:
        """Every setting that held."""
        return Experiment.stored(self._meta["experiment"])

    @property
    def summary(self) -> dict[str, Any]:
        """The summary object, as ``fluffle run --json`` prints it."""
        kept = self.folder / "summary.json"
        if self.status == "finished" and kept.exists():  # of the virtual clock
            return dict(json.loads(kept.read_text(encoding="utf-8")))
        with self._ledger() as ledger:
            return {**summarise(ledger), "folder": str(self.folder)}

    @property
    def status(self) -> str:
        """ "running", "finished", "failed" or "aborted", as the ledger has it."""
        with self._ledger() as ledger:
            return ledger.meta["status"]

    @property
    def accuracy(self) -> float | None:
        """Of the last version that was evaluated; None where the task measures none."""
        return self._metric("accuracy")

    @property
    def loss(self) -> float | None:
        """Of the last version that was evaluated."""
        return self._metric("loss")

    def _metric(self, name: str) -> float | None:
        with self._ledger() as ledger:
            found: float | None = summarise(ledger)[name]
        return found

    # ---- its numbers

    @property
    def history(self) -> pd.DataFrame:
        """A row for each version; the columns are those of ``fluffle export --format csv``.

        Raises: UserError where pandas is not installed.
        """
        return frame(history_rows(self.folder), "version")

    @property
    def updates(self) -> pd.DataFrame:
        """A row for each update that was folded. Raises: UserError where pandas is missing."""
        return frame(update_rows(self.folder))

    # ---- its model

    def weights(self, version: int | str = "last") -> Tensors:
        """The arrays of a version by name: "last", "best" or a number.

        Raises: UserError where they are not kept any more.
        """
        from fluffle.export import read_weights

        with self._ledger() as ledger:
            return read_weights(ledger, str(version)).tensors

    @property
    def model(self) -> Any:
        """The Keras model of the last version, compiled; of an ArrayTask its arrays by name.

        Raises: UserError.
        """
        return self.model_of("last")

    def model_of(self, version: int | str) -> Any:
        """As ``model``, of a version: "last", "best" or a number."""
        from fluffle.export import read_weights
        from fluffle.schemas import Plan
        from fluffle.worker.tasks.arrays import ArrayTask
        from fluffle.worker.tasks.registry import load_task, trying
        from fluffle.worker.training.runtime import configure

        configure(os.cpu_count() or 1)
        plan = Plan.of(self.experiment, "delta")
        with self._ledger() as ledger:
            tensors = read_weights(ledger, str(version)).tensors
        with self._with_code():
            task = load_task(plan)
            if isinstance(task, ArrayTask):
                return {name.partition("/")[2]: array for name, array in tensors.items()}
            from fluffle.worker.training.saving import keras_model

            return trying(task, lambda: keras_model(plan, tensors))

    # ---- what it looks like

    def plot(self, metric: str = "accuracy", by: str = "time") -> Figure:
        """A metric by "time", "updates", "bytes" or "cost", as a Matplotlib figure.

        Raises: UserError where there is no such metric.
        """
        from fluffle.api.pictures import plot

        return plot([self.folder], metric, by)

    def report(
        self, out: str | Path | None = None, *, target: float | None = None,
        price: float | None = None,
    ) -> Path:  # fmt: skip
        """Write ``report.html`` and its figures, by default into ``report`` in the run folder;
        where the page is. target, price: as ``fluffle report`` takes them. Raises: UserError.
        """
        from fluffle.api.pictures import report

        return report([self.folder], Path(out) if out else None, target, price)

    def verify(self, replay: bool = False) -> Verified:
        """Check the run against the invariants, and recompute its versions where ``replay``.

        Raises: UserError where it has kept no updates to replay.
        """
        from fluffle.aggregator import verify as checks

        with self._ledger() as ledger, ledger.snapshot():
            problems = checks.verify(ledger)
            if problems or not replay:
                return Verified(tuple(problems))
            found = checks.replay(ledger)
        return Verified((found.problem,) if found.problem else (), str(found))

    # ---- in a notebook

    def __repr__(self) -> str:
        return f"<fluffle.Run {self.folder}: {', '.join(self._words())}>"

    def _repr_html_(self) -> str:
        rows = [("run", str(self.folder)), *self._facts()]
        cells = "".join(
            f"<tr><th style='text-align:left'>{escape(k)}</th><td>{escape(v)}</td></tr>"
            for k, v in rows
        )
        return f"<table>{cells}</table>"

    def _words(self) -> Iterator[str]:
        for key, value in self._facts():
            yield value if key == "status" else f"{key} {value}"

    def _facts(self) -> list[tuple[str, str]]:
        from fluffle.display import readable

        with self._ledger() as ledger:
            found = summarise(ledger)
        return [
            ("status", found["status"]),
            ("version", f"{found['versions']} of {self.experiment.experiment.versions}"),
            ("updates", f"{found['updates_counted']:,}"),
            *readable(found["metrics"]),
        ]

    @contextmanager
    def _ledger(self) -> Iterator[LedgerReader]:
        with blamed(self.folder), closing(LedgerReader(self.folder)) as ledger:
            yield ledger

    @contextmanager
    def _with_code(self) -> Iterator[None]:
        with code_in(self.code or Path(os.environ.get(FOLDER, "."))):
            yield


@contextmanager
def code_in(folder: Path) -> Iterator[None]:
    """Within, files that an experiment names are looked for there."""
    before = os.environ.get(FOLDER)
    os.environ[FOLDER] = str(folder.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ[FOLDER]
        else:
            os.environ[FOLDER] = before
