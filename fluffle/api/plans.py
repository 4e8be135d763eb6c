"""A sweep's plan: which settings and seeds there are, and the folder of each run.

``sweep.json`` in the sweep's folder holds it, so that whoever works on a sweep, this process or
others beside it, and whoever looks at it later, knows what there is to do.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluffle.aggregator.ledger.same_run import difference_of
from fluffle.api.sources import Resolved, Source, _plain, document_of, resolve
from fluffle.experiment_file import full_name
from fluffle.schemas import Experiment, UserError

PLAN = "sweep.json"
#: A folder's name has room for so many letters.
_LONGEST = 120
#: More than anybody means.
MOST = 100_000

Settings = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    #: From the sweep's folder.
    folder: str
    #: What is set in it, by TABLE.KEY; the seed is not among them.
    settings: Settings
    seed: int
    resolved: Resolved

    @property
    def label(self) -> str:
        """Its settings, short."""
        return label_of(self.settings)


@dataclass(frozen=True)
class SweepPlan:
    """All runs of a sweep, seed by seed: after the first seed every setting has a result."""

    cells: tuple[Cell, ...]
    clock: str
    keys: tuple[str, ...]

    @property
    def is_here(self) -> bool:
        """Whether it needs a class of this process."""
        return any(cell.resolved.is_here for cell in self.cells)


def make_plan(
    source: Source,
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    seeds: int | Sequence[int],
    overrides: Mapping[str, Any],
    clock: str,
    code: Path | None,
) -> SweepPlan:
    """The plan of a sweep over a grid: every combination, or just those that are listed.

    seeds: the seeds, or how many: from the experiment's own on. Raises: UserError, for the whole
    sweep before any of it runs.
    """
    document, _ = document_of(source)
    combinations = [
        {full_name(key, document): _plain(value) for key, value in one.items()}
        for one in _combinations(grid)
    ]
    first = resolve(source, overrides, code).experiment.experiment.seed
    numbers = list(range(first, first + seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError("seeds: give how many, one at least, or numbers that differ")
    if len(combinations) * len(numbers) > MOST:
        raise UserError(f"this grid has {len(combinations) * len(numbers):,} runs: too many")
    cells = []
    for seed in numbers:
        for settings in combinations:
            given = {**overrides, **settings, "experiment.seed": seed}
            resolved = resolve(source, given, code)
            cells.append(Cell(_folder_of(settings, seed), settings, seed, resolved))
    if len({cell.folder for cell in cells}) < len(cells):
        raise UserError("the grid has the same settings twice")
    keys = tuple(dict.fromkeys(key for settings in combinations for key in settings))
    return SweepPlan(tuple(cells), clock, keys)


def save_plan(plan: SweepPlan, folder: Path) -> None:
    """Write it down; what an earlier sweep of this experiment has done in the folder stays in it.

    Raises: UserError where another kind of folder is there, or one of another experiment.
    """
    known: list[dict[str, Any]] = []
    if (folder / PLAN).exists():
        stored = _stored(folder)
        if stored["clock"] != plan.clock:
            raise UserError(f"{folder} holds a sweep under the {stored['clock']} clock")
        known = stored["runs"]
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds no sweep, and is not empty: name a folder that is new")
    folder.mkdir(parents=True, exist_ok=True)
    mine = {cell.folder: _entry(cell) for cell in plan.cells}
    for entry in known:
        if entry["folder"] in mine:
            before = Experiment.stored(json.dumps(entry["experiment"])).model_dump(mode="json")
            now = mine[entry["folder"]]["experiment"]
            if what := difference_of(before, now):
                raise UserError(
                    f"{folder} holds a sweep of another experiment ({what} differs): name another "
                    "folder"
                )
    runs = [*mine.values(), *(entry for entry in known if entry["folder"] not in mine)]
    text = json.dumps({"clock": plan.clock, "keys": plan.keys, "runs": runs}, indent=1)
    new = folder / f".{PLAN}.new"
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(folder / PLAN)


def load_plan(folder: Path) -> SweepPlan:
    """The plan in a sweep's folder. Raises: UserError where there is none."""
    stored = _stored(folder)
    cells = []
    for entry in stored["runs"]:
        experiment = Experiment.stored(json.dumps(entry["experiment"]))
        resolved = Resolved(experiment, Path(entry["code"]))
        cells.append(Cell(entry["folder"], entry["settings"], entry["seed"], resolved))
    return SweepPlan(tuple(cells), stored["clock"], tuple(stored["keys"]))


def is_sweep(folder: Path) -> bool:
    """Whether a sweep's plan lies there."""
    return (folder / PLAN).is_file()


def label_of(settings: Settings) -> str:
    """Settings as a person calls them: quorum 3, fedbuff."""
    words = []
    for key, value in settings.items():
        short = key.rpartition(".")[2]
        bare = short in ("strategy", "name", "kind", "mode", "algorithm")
        text = str(value).removeprefix("python:")
        words.append(text if bare else f"{short} {text}")
    return ", ".join(words)


def _combinations(
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
) -> Iterable[Mapping[str, Any]]:
    if not isinstance(grid, Mapping):
        return list(grid) or [{}]
    for key, values in grid.items():
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise UserError(f"{key}: give a list of values, as [{values!r}]")
        if not list(values):
            raise UserError(f"{key}: an empty list has no values to try")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _folder_of(settings: Settings, seed: int) -> str:
    words = [f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()]
    name = re.sub(r"[^A-Za-z0-9=._,+-]+", "-", ",".join(words)).lstrip(".-")
    if len(name) > _LONGEST:  # others may begin alike
        name = f"{name[:_LONGEST]}-{hashlib.sha256(','.join(words).encode()).hexdigest()[:8]}"
    return f"{name or 'base'},seed={seed}"


def _entry(cell: Cell) -> dict[str, Any]:
    return {
        "folder": cell.folder,
        "settings": cell.settings,
        "seed": cell.seed,
        "code": str(cell.resolved.code.resolve()),
        "experiment": cell.resolved.experiment.model_dump(mode="json"),
    }


def _stored(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if not {"clock", "keys", "runs"} <= found.keys():
            raise ValueError("its keys are not those of a sweep")
        return dict(found)
    except OSError:
        raise UserError(f"{folder} holds no sweep: there is no {PLAN} in it") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder / PLAN} is no plan of a sweep: {error}") from None
