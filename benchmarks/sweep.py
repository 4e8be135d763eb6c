"""Many virtual runs, a process for each core: what claims are measured with."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Tables = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """One evaluation of a run."""

    version: int
    #: Updates counted until then, and the bytes that they took.
    updates: int
    bytes_up: int
    #: Virtual seconds.
    at: float
    accuracy: float
    loss: float


def merged(*documents: Tables) -> dict[str, Any]:
    """Experiments laid over each other, the last on top."""
    result: dict[str, Any] = {}
    for document in documents:
        for key, value in document.items():
            known = result.get(key)
            both = isinstance(value, dict) and isinstance(known, dict)
            result[key] = {**known, **value} if both else value
    return result


def simulate(document: Tables) -> list[Measured]:
    """Run one experiment under the virtual clock; its evaluations, in order."""
    from fluffle.aggregator.ledger.reader import LedgerReader
    from fluffle.schemas import Experiment
    from fluffle.simulation.virtual import VirtualRun
    from fluffle.worker.training.runtime import configure

    configure(1)
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment.model_validate(document)
        VirtualRun(experiment, Path(folder), run_id="run", slots=1).run()
        ledger = LedgerReader(Path(folder))
        rows = ledger.query(
            "SELECT e.version, COUNT(u.update_id), COALESCE(SUM(u.bytes_up), 0), e.elapsed_s,"
            " e.metrics FROM evaluations e LEFT JOIN updates u ON u.disposition = 'counted' AND"
            " u.version BETWEEN 1 AND e.version GROUP BY e.version ORDER BY e.version"
        )
        ledger.close()
    return [
        Measured(*numbers, m["accuracy"], m["loss"])
        for *numbers, m in ((*row[:4], json.loads(row[4])) for row in rows)
    ]


def _job(job: tuple[Any, Tables]) -> tuple[Any, list[Measured]]:
    return job[0], simulate(job[1])


def sweep(jobs: Iterable[tuple[Any, Tables]]) -> Iterator[tuple[Any, list[Measured]]]:
    """Run many, given as (key, experiment); results as they come. One thread of training each."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count(), maxtasksperchild=12) as pool:
        yield from pool.imap_unordered(_job, jobs)


def save(figure: Any, path: Path) -> None:
    """A matplotlib figure as SVG: the same bytes for the same figure."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "fluffle"}):
        figure.savefig(path, metadata={"Date": None})


def reached(run: list[Measured], target: float) -> Measured | None:
    """The first evaluation with this accuracy."""
    return next((m for m in run if m.accuracy >= target), None)
