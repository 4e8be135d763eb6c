"""What clients say of their own models, over clients: in the summary and in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.coordinator.effects import Fold, MakeVersion
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.schemas import Experiment

#: client, accuracy of its own model; the later one of client 0 counts.
TOLD = [[("0", 0.1), ("1", 0.5)], [("0", 0.9), ("2", 0.4)], [("3", None)]]


def write(folder: Path, by_client: bool = True) -> Path:
    tables: dict[str, Any] = {"task": {"clients": 5}, "evaluation": {"by_client": by_client}}
    ledger, turn = Ledger(folder, durable=False), 0
    ledger.open_run(Experiment.model_validate(tables), "run", 1, "virtual")
    ledger.lead()
    state = {"model/trainable/0": np.zeros(4, np.float32)}
    ledger.make_version(MakeVersion(0, state, "initial", [], 9), {}, 0.0, keep=3)
    for version, told in enumerate(TOLD, start=1):
        folds = []
        for client, accuracy in told:
            turn += 1
            own = {} if accuracy is None else {"personal_accuracy": accuracy}
            folds.append(
                Fold(
                    **{"update_id": f"run:{turn}:{client}", "client": client, "turn": turn},
                    **{"base_version": version - 1, "staleness": 0, "examples": 10},
                    **{"worker": "w", "metrics": {"accuracy": 0.7, **own}},
                )
            )
        sizes = {fold.update_id: 1 for fold in folds}
        ledger.make_version(MakeVersion(version, state, "quorum", folds, 9), sizes, 1.0, keep=3)
    ledger.close()
    return folder


def summary(folder: Path) -> Any:
    ledger = LedgerReader(folder)
    found = summarise(ledger)["personal"]
    ledger.close()
    return found


def test_each_client_counts_once_with_what_it_said_last(tmp_path: Path) -> None:
    values = [0.9, 0.5, 0.4]
    assert summary(write(tmp_path)) == {
        "accuracy_worst": 0.4,
        "accuracy_p10": pytest.approx(np.percentile(values, 10)),
        "accuracy_mean": pytest.approx(0.6),
        "accuracy_std": pytest.approx(np.std(values)),
        "clients": 3,
    }


def test_a_run_that_does_not_ask_has_none(tmp_path: Path) -> None:
    assert summary(write(tmp_path, by_client=False)) is None


def test_the_report_has_their_rows(tmp_path: Path) -> None:
    from fluffle.report.data import read_runs
    from fluffle.report.tables import facts

    rows = facts(read_runs([write(tmp_path)]))
    assert rows["own models, mean"] == ["60.0 %"]
    assert rows["own models, worst client"] == ["40.0 %"]
    assert rows["own models' spread"] == ["21.6 points"]
