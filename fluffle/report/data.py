"""One run as plain arrays, from its ledger; turns in time from its events, where it has them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.aggregator.ledger import sums
from fluffle.aggregator.ledger.damage import blamed
from fluffle.aggregator.ledger.personal import personal
from fluffle.aggregator.ledger.privacy import epsilons, privacy_of
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.export import CONFUSION
from fluffle.schemas import Experiment, UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: How much of a failure's reason tells one kind from another.
_REASON = 40


@dataclass(frozen=True, eq=False)
class Versions:
    """What had been spent when each version was made; shape (versions + 1,)."""

    #: Seconds since the run began, virtual or real.
    made_s: Floats
    #: Updates counted in this and all earlier versions, and all bytes both ways until then: those
    #: of updates that counted nowhere, too.
    updates: Ints
    bytes: Ints


@dataclass(frozen=True, eq=False)
class Evaluations:
    """The versions that were measured, in order; NaN where a task has no such metric."""

    version: Ints
    accuracy: Floats
    loss: Floats
    #: Of clients' accuracies: the worst, where the worst tenth begins, the standard deviation.
    client_worst: Floats
    client_tenth: Floats
    client_std: Floats
    #: What else a task measures, by name.
    others: Mapping[str, Floats] = field(default_factory=dict)

    def of(self, name: str) -> Floats:
        """A metric by its name; NaN throughout where the task has no such."""
        if name in ("accuracy", "loss"):
            return self.accuracy if name == "accuracy" else self.loss
        return self.others.get(name, np.full(len(self.version), np.nan))

    @property
    def decisive(self) -> Floats:
        """The accuracy that decides: on validation examples, where there are any."""
        return self.others.get("validation_accuracy", self.accuracy)


@dataclass(frozen=True, eq=False)
class Updates:
    """Updates that arrived and were folded; shape (updates,)."""

    client: NDArray[np.str_]
    worker: NDArray[np.str_]
    base_version: Ints
    staleness: Ints
    #: Virtual clock: from fetching the model to the update's arrival. Real clock: the slot's time
    #: since its last turn ended, so that waiting for a turn is in it.
    response_s: Floats
    #: The version that counts it; -1 for none.
    version: Ints


@dataclass(frozen=True, eq=False)
class Turns:
    """Who trained when; shape (turns,)."""

    client: NDArray[np.str_]
    start_s: Floats
    #: The end of the run for a turn that it cut short.
    end_s: Floats
    #: "arrived", "lost", "stopped" or "open" (at the end of the run).
    outcome: NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a report."""

    folder: Path
    #: What it is called in legends and tables.
    label: str
    run_id: str
    status: str
    #: Why it ended, in a line.
    detail: str
    virtual: bool
    experiment: Experiment
    elapsed_s: float
    versions: Versions
    evaluations: Evaluations
    updates: Updates
    dropouts: int
    #: All that travelled, by what became of it (``sums.traffic``).
    traffic: dict[str, sums.Traffic]
    #: How many, by reason.
    rejected: dict[str, int]
    failures: dict[str, int]
    #: What was revealed of any one client until then; shape (versions,), empty without [privacy].
    epsilon: Floats
    #: What it stands on: which runs are neighbours, and what may have broken it.
    privacy: dict[str, Any] | None
    #: Shape (true classes, predicted classes); None where the last version's was not counted.
    confusion: Ints | None
    #: Of clients' own models: mean, spread and the like; empty without any.
    personal: Mapping[str, float]
    #: None where the folder has no events: only the virtual clock writes them.
    turns: Turns | None

    def but(self, experiment: Experiment) -> Run:
        """The same run under a changed experiment: another target or price."""
        return replace(self, experiment=experiment)

    @property
    def clock(self) -> str:
        """How axes call its time."""
        return "virtual time" if self.virtual else "time"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders. Raises: UserError where one holds none."""
    return [read_run(f, label) for f, label in zip(folders, _labels(folders), strict=True)]


def read_run(folder: Path, label: str) -> Run:
    """The run in this folder, finished or not. Raises: UserError."""
    with blamed(folder), closing(LedgerReader(folder)) as ledger:
        meta = ledger.meta
        if "experiment" not in meta or ledger.latest_version() < 0:
            raise UserError(f"{folder} has nothing to report yet: no version has been made")
        elapsed_s = float(meta.get("elapsed_s", 0))
        spent = epsilons(ledger)
        return Run(
            folder=folder,
            label=label,
            run_id=meta["run_id"],
            status=meta["status"],
            detail=meta.get("detail", ""),
            virtual=meta.get("clock") == "virtual",
            experiment=Experiment.stored(meta["experiment"]),
            elapsed_s=elapsed_s,
            versions=_versions(ledger),
            evaluations=_evaluations(ledger),
            updates=_updates(ledger),
            dropouts=ledger.count("dropouts"),
            traffic=sums.traffic(ledger),
            rejected=sums.rejected(ledger),
            failures=sums.failures_by_reason(ledger, _REASON),
            epsilon=np.array([0.0, *(value for _, value in spent)] if spent else [], float),
            privacy=privacy_of(ledger),
            confusion=_confusion(folder / CONFUSION, ledger.latest_version()),
            personal=personal(ledger) or {},
            turns=_turns(folder / "events.jsonl", elapsed_s),
        )


def _versions(ledger: LedgerReader) -> Versions:
    _, made_s, updates, sizes = zip(*sums.counted_by_version(ledger), strict=True)
    return Versions(np.array(made_s, float), np.cumsum(updates), np.cumsum(sizes))


def _evaluations(ledger: LedgerReader) -> Evaluations:
    rows = ledger.evaluations()
    metrics = [json.loads(text) for _, text, *_ in rows]
    known = ("accuracy", "loss")
    others = {n for m in metrics for n in m if n not in known and not n.startswith("client_")}

    def of(name: str) -> Floats:
        return np.array([m.get(name, np.nan) for m in metrics], float)

    return Evaluations(
        np.array([version for version, *_ in rows], np.int64),
        of("accuracy"),
        of("loss"),
        of("client_accuracy_worst"),
        of("client_accuracy_p10"),
        of("client_accuracy_std"),
        {name: of(name) for name in sorted(others)},
    )


def _updates(ledger: LedgerReader) -> Updates:
    rows = ledger.query(
        "SELECT client, worker, base_version, staleness, slot_s, COALESCE(version, -1)"
        " FROM updates WHERE turn > 0 ORDER BY turn"
    )
    client, worker, base, staleness, response_s, version = (
        zip(*rows, strict=True) if rows else ((),) * 6
    )
    return Updates(
        np.array(client, np.str_),
        np.array(worker, np.str_),
        np.array(base, np.int64),
        np.array(staleness, np.int64),
        np.array(response_s, float),
        np.array(version, np.int64),
    )


def _confusion(path: Path, version: int) -> Ints | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        counts = np.array(found["counts"], np.int64)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
            raise ValueError("not square")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no confusion matrix: remove it") from None
    return counts if found["version"] == version else None  # the run has gone on since


def _turns(path: Path, elapsed_s: float) -> Turns | None:
    if not path.is_file():
        return None
    started: dict[int, tuple[str, float]] = {}
    ended: dict[int, tuple[float, str]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                event: dict[str, Any] = json.loads(line)
                if event["event"] == "start":
                    started.setdefault(event["turn"], (event["client"], event["at"]))
                    ended.pop(event["turn"], None)  # it was stopped, and goes on with a newer model
                elif event["event"] in ("arrived", "lost", "stopped"):
                    ended[event["turn"]] = (event["at"], event["event"])
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}, line {number}: this is no event of a run") from None
    ends = [ended.get(turn, (elapsed_s, "open")) for turn in started]
    return Turns(
        np.array([client for client, _ in started.values()], np.str_),
        np.array([at for _, at in started.values()], float),
        np.array([at for at, _ in ends], float),
        np.array([outcome for _, outcome in ends], np.str_),
    )


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names; where two are alike, the paths as given."""
    names = [folder.resolve().name for folder in folders]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    # A folder's name may hold bytes that are no text, which no figure can draw.
    return [os.fsencode(label).decode("utf-8", "replace") for label in labels]
