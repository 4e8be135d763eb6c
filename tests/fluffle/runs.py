"""Run folders whose every number is known, written by the ledger that writes the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fluffle.aggregator.coordinator.effects import Fold, MakeVersion
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.schemas import Assignment, ClientFailed, Evaluation, Experiment, Run

RUN = Run(run_id="run", run_started=1000, epoch=1)
#: (turn, client, base version, staleness, worker, response in seconds), by version.
FOLDS = {
    1: [(1, "0", 0, 0, "w1", 4.0), (2, "1", 0, 0, "w2", 8.0)],
    2: [(3, "0", 0, 1, "w1", 2.0), (4, "0", 1, 0, "w1", 6.0), (5, "2", 0, 1, "w1", 9.0)],
}
MADE_S = {0: 1.0, 1: 10.0, 2: 20.0}
METRICS = {
    0: {"accuracy": 0.125, "loss": 2.0},
    1: {"accuracy": 0.5, "loss": 1.0},
    2: {"accuracy": 0.75, "loss": 0.5},
}
BYTES_UP, BYTES_DOWN = 100, 1000
#: Turns 1 to 5 as above, one that was lost, and one that was not over at the end.
EVENTS = [
    *[{"at": float(t), "event": "start", "client": c, "turn": t} for t, c in enumerate("0102034")],
    *[{"at": t + 2.5, "event": "arrived", "turn": t, "took": 2.5} for t in range(5)],
    {"at": 9.0, "event": "lost", "turn": 5, "where": "upload"},
]


def write_run(
    folder: Path,
    *,
    clock: str = "real",
    metrics: dict[int, dict[str, float]] = METRICS,
    losses: bool = True,
    **tables: Any,
) -> Path:
    """A run of two versions and five updates, with some of everything that can go wrong."""
    ledger = Ledger(folder, durable=False)
    ledger.open_run(Experiment.model_validate({"task": {"clients": 5}, **tables}), "run", 1, clock)
    ledger.lead()
    for version, made_s in MADE_S.items():
        folds = [
            Fold(
                **{"update_id": f"run:{turn}:{client}", "client": client, "turn": turn},
                **{"base_version": base, "staleness": stale, "examples": 10, "worker": worker},
                **{"slot_s": response_s, "received_bytes": BYTES_DOWN},
            )
            for turn, client, base, stale, worker, response_s in FOLDS.get(version, [])
        ]
        state = {"model/trainable/0": np.full(4, version, np.float32)}
        closed_by = "quorum" if version else "initial"
        sizes = {fold.update_id: BYTES_UP for fold in folds}
        made = MakeVersion(version, state, closed_by, folds, 9)
        ledger.make_version(made, sizes, made_s, keep=3)
    for version, values in metrics.items():
        measured = Evaluation(run=RUN, version=version, worker="e", metrics=values, examples=9)
        ledger.record_evaluation(measured, MADE_S[version] + 5.0)
    if losses:
        _go_wrong(ledger)
    ledger.finish("finished", "", [], {}, 20.0)
    ledger.close()
    if clock == "virtual":
        (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in EVENTS))
    return folder


def _go_wrong(ledger: Ledger) -> None:
    for number in range(3):
        ledger.record_rejection(f"sha{number}", "", "late" if number else "too stale")
    lost = Assignment(run=RUN, assignment_id="run:7:3", client="3", turn=7, version=1, kind="train")
    ledger.record_dropouts([lost])
    failed = {"run": RUN, "client": "4", "worker": "w1", "base_version": 0, "reason": "no data"}
    ledger.record_failure(ClientFailed(update_id="run:8:4", turn=8, **failed))
