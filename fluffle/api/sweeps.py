"""``fl.sweep``: every combination of some settings, with several seeds, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluffle.api import results
from fluffle.api.plans import SweepPlan, load_plan, make_plan, save_plan
from fluffle.api.random_search import Range, draws
from fluffle.api.runs import Run
from fluffle.api.sources import Source, resolve
from fluffle.api.sweeping import reason_of, status_of, try_again, work, work_in_processes
from fluffle.api.tables import frame
from fluffle.launch import CLOCKS, new_folder
from fluffle.schemas import UserError
from fluffle.schemas.user_code import forget_changed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: Tables that a sweep leaves in its folder: for each run, and for each setting over its seeds.
RUNS, TABLE = "runs.csv", "table.csv"


class SweepStopped(KeyboardInterrupt):
    """A sweep was interrupted: the same call with the same ``out`` goes on."""

    def __init__(self, sweep: Sweep) -> None:
        done = len(sweep.runs)
        super().__init__(
            f"stopped after {done} of {len(sweep)} runs; the same call with "
            f"out={str(sweep.folder)!r} goes on"
        )
        self.sweep = sweep


class Sweep:
    """The runs of a sweep, done or not. Everything is read when it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        """Raises: UserError where there is no sweep."""
        self.folder = Path(folder)
        self.plan: SweepPlan = load_plan(self.folder)

    @property
    def runs(self) -> list[Run]:
        """Those that have ended, in the order of the plan."""
        return list(self)

    @property
    def failed(self) -> dict[str, str]:
        """Runs that failed, by their folder: why, in a line."""
        places = (self.folder / cell.folder for cell in self.plan.cells)
        return {place.name: reason_of(place) for place in places if status_of(place) == "failed"}

    def __iter__(self) -> Iterator[Run]:
        for cell in self.plan.cells:
            place = self.folder / cell.folder
            if status_of(place) in ("finished", "aborted"):
                yield Run(place, code=cell.resolved.code)

    def __len__(self) -> int:
        """How many runs it has in all."""
        return len(self.plan.cells)

    def rows(self, target: float | None = None) -> list[dict[str, Any]]:
        """A dict for each run that has ended: settings, seed, metrics, what it took."""
        folders = [run.folder for run in self]
        found = results.rows_of(folders, target)
        settings = self._settings()
        for row, folder in zip(found, folders, strict=True):
            own = settings[folder.name]
            # The grid's own keys, those that are alike in all runs included, and no others.
            kept = {k: v for k, v in row.items() if k not in results.settings_in([row])}
            row.clear()
            row.update({"run": folder.name, **own, **{k: v for k, v in kept.items() if k != "run"}})
        return found

    def table_rows(self, target: float | None = None) -> list[dict[str, Any]]:
        """A dict for each combination: mean and standard deviation over its seeds."""
        rows = self.rows(target)
        return results.over_seeds(rows, results.settings_in(rows))

    def table(self, target: float | None = None) -> pd.DataFrame:
        """``table_rows`` as a DataFrame: ``accuracy`` and ``accuracy_std``, …; with a target also
        what it took to reach it, and how many did (``reached``). Raises: UserError without pandas.
        """
        return frame(self.table_rows(target))

    def plot(self, metric: str = "accuracy", by: str = "time") -> Figure:
        """Mean lines with bands over the seeds, as ``Run.plot``. Raises: UserError."""
        from fluffle.api.pictures import plot

        return plot([run.folder for run in self], metric, by)

    def report(
        self, out: str | Path | None = None, *, target: float | None = None,
        price: float | None = None,
    ) -> Path:  # fmt: skip
        """The page of all runs, by default in ``report`` in the sweep's folder; where it is."""
        from fluffle.api.pictures import report

        folders = [run.folder for run in self]
        if not folders:
            raise UserError(f"{self.folder} has nothing to report yet: no run has ended")
        return report(folders, Path(out) if out else self.folder / "report", target, price)

    def write_tables(self, target: float | None = None) -> None:
        """``runs.csv`` and ``table.csv`` in the sweep's folder."""
        rows = self.rows(target)
        results.write_rows(rows, "csv", self.folder / RUNS)
        over = results.over_seeds(rows, results.settings_in(rows))
        results.write_rows(over, "csv", self.folder / TABLE)

    def _settings(self) -> dict[str, dict[str, Any]]:
        keys = self.plan.keys
        short = {key: key.rpartition(".")[2] for key in keys}
        alone = {k: s if [*short.values()].count(s) == 1 else k for k, s in short.items()}
        return {
            cell.folder: {alone.get(key, key): value for key, value in cell.settings.items()}
            for cell in self.plan.cells
        }

    def __repr__(self) -> str:
        return f"<fluffle.Sweep {self.folder}: {len(self.runs)} of {len(self)} runs>"


def sweep(
    source: Source,
    grid: Mapping[str, Sequence[Any] | Range] | Sequence[Mapping[str, Any]],
    *,
    random: int | None = None,
    seeds: int | Sequence[int] = 1,
    jobs: int = 1,
    out: str | Path | None = None,
    clock: str = "virtual",
    slots: int = 0,
    code: str | Path | None = None,
    target: float | None = None,
    progress: bool = True,
    **overrides: Any,
) -> Sweep:
    """Run every combination of a grid with every seed; what is done already is not done again.

    source, code, overrides: as ``fl.run`` takes them.
    grid: values by key, ``{"quorum": [1, 3, 10], "concurrency": [10, 50]}``: all combinations; or a
        list of dicts, just those.
    random: so many settings drawn from the grid instead, whose values may then be an ``fl.Range``.
    seeds: how many, from the experiment's own on; or which.
    jobs: how many processes work on it; 1 is this one, with ``slots`` threads of training.
    out: its folder; one that holds this sweep goes on, and a larger grid adds to it. Default: a new
        one below ``runs/``.
    clock: "virtual", under which a run's numbers do not depend on what runs beside it; or "real".
    target: an accuracy for the tables in the folder: what it took to reach it.

    Raises: UserError before anything runs, where a combination cannot be; SweepStopped (a
    KeyboardInterrupt) after Ctrl-C. A run that fails is in ``failed``, and the others go on.
    """
    if clock not in CLOCKS:
        raise UserError(f"clock={clock!r}: it is {' or '.join(CLOCKS)}")
    if jobs < 1:
        raise UserError(f"jobs={jobs}: one at least")
    forget_changed()
    settings = _drawn(source, grid, random, overrides)
    plan = make_plan(
        source, settings, seeds, overrides, clock, None if code is None else Path(code)
    )
    if jobs > 1 and plan.is_here:
        raise UserError(
            "this experiment has a class that this process defines, and the processes of a sweep "
            "cannot load it, for code does not travel: put it into a file, my_task.py, and name it "
            "'my_task.py:MyTask'; or take jobs=1"
        )
    folder = (
        Path(out)
        if out
        else new_folder(f"sweep-{plan.cells[0].resolved.experiment.experiment.name}")
    )
    save_plan(plan, folder)
    try_again(folder, plan)
    return carry_out(folder, jobs, slots, progress, target)


def _drawn(
    source: Source,
    grid: Mapping[str, Sequence[Any] | Range] | Sequence[Mapping[str, Any]],
    random: int | None,
    overrides: Mapping[str, Any],
) -> Any:
    """The grid, or what is drawn of it. Raises: UserError."""
    if random is not None:
        if not isinstance(grid, Mapping):
            raise UserError("a random search draws from values by key: give a dict of them")
        return draws(grid, random, resolve(source, overrides).experiment.experiment.seed)
    if isinstance(grid, Mapping) and any(isinstance(v, Range) for v in grid.values()):
        raise UserError("a range has no end of values: say how many settings to draw (random=20)")
    return grid


def carry_out(
    folder: Path, jobs: int, slots: int, progress: bool, target: float | None = None
) -> Sweep:
    """Do what is left to do of the sweep in a folder. Raises: UserError, SweepStopped."""
    from fluffle.api.sweep_display import SweepDisplay

    made = Sweep(folder)
    with SweepDisplay(folder, made.plan, shown=progress) as display:
        try:
            if jobs > 1:
                stopped = work_in_processes(folder, jobs, display.look)
            else:
                stopped = work(folder, made.plan, slots, display.told)
        except KeyboardInterrupt:
            stopped = True
    made.write_tables(target)
    if stopped:
        raise SweepStopped(made)
    return made


def as_json(sweep: Sweep, target: float | None) -> str:
    """One object: the folder, how many runs there are, rows by run and by setting, failures."""
    return json.dumps(
        {
            "folder": str(sweep.folder),
            "runs": len(sweep),
            "done": len(sweep.runs),
            "failed": sweep.failed,
            "table": sweep.table_rows(target),
            "rows": sweep.rows(target),
        }
    )
