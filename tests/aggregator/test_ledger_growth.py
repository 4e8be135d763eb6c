"""A ledger does not grow with what anybody may send without end."""

from __future__ import annotations

from pathlib import Path

import pytest

import fluffle.aggregator.ledger.writer
from fluffle.aggregator.ledger import sums
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.verify import verify
from fluffle.broker import Envelope
from fluffle.schemas import Assignment, ClientFailed, decode
from fluffle.schemas.messages import assignment_id
from tests.aggregator.scripted import Federation


def failed(federation: Federation, client: int, turn: int) -> None:
    coordinator = federation.service.coordinator
    assert coordinator is not None
    failure = ClientFailed(
        run=coordinator.run,
        update_id=assignment_id("run", turn, str(client)),
        client=str(client),
        turn=turn,
        base_version=0,
        worker="w",
        reason=f"why {turn} " + "x" * 1900,
    )
    federation.worker.submit(Envelope.of(failure))
    federation.settle()


def test_failures_that_nobody_asked_for_are_counted_in_few_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run, and a turn that really fails
    monkeypatch.setattr(fluffle.aggregator.ledger.writer, "MOST_UNASKED", 5)
    federation = Federation(tmp_path)
    federation.answer(1)
    delivery = federation.worker.receive_assignment(0.0)
    assert delivery is not None
    turn = decode(delivery.envelope.body)
    assert isinstance(turn, Assignment)
    failed(federation, int(turn.client), turn.turn)
    # When a worker sends valid failures of all clients without end
    for number in range(1000, 1400):
        failed(federation, number % 8, number)
    # Then few are remembered one by one, and all are counted
    ledger = LedgerReader(tmp_path)
    assert ledger.count("failures") <= 1 + 5 + 8
    assert sums.failures(ledger) == 401
    assert verify(ledger) == []


def test_rejections_beyond_a_number_are_only_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr(fluffle.aggregator.ledger.writer, "MOST_REJECTIONS", 10)
    federation = Federation(tmp_path)
    federation.answer(1)
    # When bytes that are no messages come without end
    for number in range(50):
        federation.worker.submit(Envelope(b"%d" % number, "client-update", f"m{number}"))
        federation.settle()
    # Then
    ledger = LedgerReader(tmp_path)
    assert ledger.count("rejections") == 11
    assert sums.rejected(ledger) == {"undecodable": 50}
    assert verify(ledger) == []
