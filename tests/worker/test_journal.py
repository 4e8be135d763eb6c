"""A worker's journal: what it sent, in its own words, whatever becomes of it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.service import AggregatorService
from fluffle.broker import Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import Experiment, UserError
from fluffle.worker.services.journal import Journal
from fluffle.worker.services.worker import WorkerService


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_there_as_soon_as_it_is_written_and_a_restart_appends(tmp_path: Path) -> None:
    path = tmp_path / "site" / "journal.jsonl"
    update = Envelope(b"1234", "client-update", "run:7:3", {"base_version": 5})
    # Given a worker that died between sending an update and its confirm
    Journal(path).sending(update)
    # When it starts again and sends it once more
    again = Journal(path)
    again.sending(update)
    again.confirmed(update)
    # Then, with the file still open, all of it can be read
    lines = read(path)
    assert [line["what"] for line in lines] == ["sending", "sending", "confirmed"]
    for line in lines:
        assert line.pop("at") > 0
        line.pop("what")
        assert line == {
            **{"type": "client-update", "update_id": "run:7:3"},
            **{"base_version": 5, "bytes": 4},
        }


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the journal .*file/journal"):
        Journal(tmp_path / "file" / "journal")


@pytest.mark.tensorflow
def test_what_a_worker_confirmed_is_what_the_ledger_has_or_will_get(tmp_path: Path) -> None:
    # Given a run with one worker that keeps a journal
    experiment = Experiment.model_validate(
        {
            "experiment": {"versions": 4},
            "task": {"name": "digits-lr", "clients": 4},
            "evaluation": {"every_updates": 0},
        }
    )
    broker, path = EmbeddedBroker(), tmp_path / "journal.jsonl"
    worker = WorkerService(broker.worker("w", 2), "w", 2, journal=Journal(path))
    thread = threading.Thread(target=worker.run)
    thread.start()
    service = AggregatorService(experiment, broker.aggregator(), tmp_path / "out", run_id="run")
    assert service.run() == "finished"
    thread.join()
    # Then every confirmed update has been sent, and every one in the ledger was confirmed
    lines = read(path)
    sent, confirmed = (
        {line["update_id"] for line in lines if line["what"] == what}
        for what in ("sending", "confirmed")
    )
    ledger = Ledger(tmp_path / "out")
    recorded = {update_id for (update_id,) in ledger.query("SELECT update_id FROM updates")}
    rejected = {i for (i,) in ledger.query("SELECT message_id FROM rejections")}
    assert len(recorded) >= 1 + 4 * 3
    assert recorded | rejected <= confirmed == sent
