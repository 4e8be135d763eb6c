"""Numbers and names that a message may carry: bounded, and of no harm where they are shown."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fluffle.aggregator.ledger.reader import LEDGER, LedgerReader
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.verify import verify
from fluffle.display import print_summary
from fluffle.export import export
from fluffle.report.data import read_runs
from fluffle.schemas import ClientUpdate, Evaluation, Run
from fluffle.schemas.messages import metric_name
from tests.aggregator.scripted import Federation, noise

RUN = Run(run_id="run", run_started=0, epoch=1)
UPDATE: dict[str, Any] = {
    **{"run": RUN, "update_id": "run:1:1", "client": "1", "turn": 1, "base_version": 0},
    **{"worker": "w", "sends": "delta", "examples": 1, "tensors": noise({}, 0)},
}
#: Names that somebody takes for something else.
WILD = ("=1+1", "[/x]", "+1", "@x", "a\nb", "a\x1b[2J", "$x", "<b>", "x" * 65, "", "a'b", 'a"b')


@pytest.mark.parametrize(
    "field",
    [
        {"received_bytes": 2**53},
        {"examples": 2**53},
        {"train_s": 1.7e308},
        {"slot_s": 1.7e308},
        {"metrics": {"loss": 1e308}},
        *({"metrics": {name: 1.0}} for name in WILD),
    ],
)
def test_no_message_carries_it(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ClientUpdate.model_validate(UPDATE | field)


def test_what_a_task_measures_is_sent_under_a_name_that_a_message_takes() -> None:
    # Given metrics that a person has named, in any language
    good = ["top-5 accuracy", "F1 (macro)", "准确率", "x²"]
    # When
    sent = dict.fromkeys(map(metric_name, [*WILD, *good]), 0.5)
    # Then
    evaluation = Evaluation(run=RUN, version=0, worker="w", metrics=sent, examples=1)
    assert set(good) <= evaluation.metrics.keys()


def recorded(folder: Path, metrics: dict[str, float]) -> None:
    """A run whose ledger holds what older aggregators took."""
    Federation(folder).finish()
    db = sqlite3.connect(folder / LEDGER)
    db.execute("UPDATE updates SET bytes_down = ?, examples = ?", (2**62, 2**62))
    db.execute("UPDATE updates SET metrics = ?", (json.dumps(metrics),))
    row = (3, "w", json.dumps(metrics), 2**62, 1.0, 1.0)
    db.execute("INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?)", row)
    db.commit()
    db.close()


def test_sums_do_not_overflow(tmp_path: Path) -> None:
    recorded(tmp_path, {})
    ledger = LedgerReader(tmp_path)
    assert summarise(ledger)["bytes_down"] > 2**63
    assert verify(ledger) == []
    ledger.close()
    (run,) = read_runs([tmp_path])
    assert run.versions.bytes[-1] > 0


def test_wild_names_in_a_ledger_are_printed_and_exported_as_they_are(tmp_path: Path) -> None:
    # Given
    recorded(tmp_path, {"[/x]": 1.0, "client_x": 2.0, "version": 99.0, "=1+1": 3.0})
    ledger = LedgerReader(tmp_path)
    summary = {**summarise(ledger), "peak_rss_mb": 1.0}
    ledger.close()
    # When
    shown = io.StringIO()
    print_summary(Console(file=shown, width=200), summary, tmp_path)
    rows = list(csv.reader(export(tmp_path, "csv", "last", None).open(encoding="utf-8")))
    # Then
    assert "[/x]" in shown.getvalue()
    assert "x 2" in shown.getvalue()
    assert [row[0] for row in rows] == ["version", *map(str, range(7))]
    assert rows[0].count("version") == 1
    assert {"metric_version", "'=1+1"} <= set(rows[0])
