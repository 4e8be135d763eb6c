"""A ledger does not grow with what anybody may send without end."""

from __future__ import annotations

from pathlib import Path

import pytest

import fluffle.aggregator.ledger.writer
from fluffle.aggregator.ledger import sums
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.verify import verify
from fluffle.broker import Envelope
from fluffle.schemas import Assignment, ClientFailed, Evaluation, decode
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


def leading(folder: Path) -> Ledger:
    ledger = Ledger(folder)
    ledger.lead()
    return ledger


def test_one_senders_noise_takes_nobody_elses_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run, and a member that has sent more than is remembered
    monkeypatch.setattr(fluffle.aggregator.ledger.writer, "MOST_REJECTIONS", 5)
    monkeypatch.setattr(fluffle.aggregator.ledger.writer, "MOST_UNASKED", 5)
    federation = Federation(tmp_path)
    run = federation.service.coordinator.run
    federation.die()
    ledger = leading(tmp_path)

    def noise(number: int, sender: str) -> None:
        ledger.record_rejection(f"{sender}{number}", f"m{number}", "late", sender=sender)
        failure = ClientFailed(
            run=run,
            update_id=assignment_id("run", 1000 + number, "1"),
            client="1",
            turn=1000 + number,
            base_version=0,
            worker="w",
            reason=f"why of {sender}",
        )
        ledger.record_failure(failure, asked=False, sender=sender)

    for number in range(50):
        noise(number, "noisy")
    # When an honest member is too late, after a restart too
    noise(100, "honest")
    ledger.close()
    ledger = leading(tmp_path)
    for number in range(50, 100):
        noise(number, "noisy")
    noise(101, "honest")
    # Then what it sent is remembered, and of the other's no more than its share
    for number in (100, 101):
        assert ledger.reason_rejected(f"m{number}", lambda n=number: f"honest{n}") == "late"
        assert ledger.count("failures WHERE assignment_id = ?", f"run:{1000 + number}:1") == 1
    assert ledger.count("rejections WHERE sender = 'noisy'") == 6
    assert sums.rejected(ledger) == {"late": 102}


def test_a_version_has_few_evaluators(tmp_path: Path) -> None:
    # Given
    federation = Federation(tmp_path)
    federation.answer(1)
    # When somebody measures it under any number of names
    for number in range(100):
        measured = Evaluation(
            run=federation.service.coordinator.run,
            version=0,
            worker=f"e{number}",
            metrics={"loss": 1.0},
            examples=1,
        )
        federation.worker.submit(Envelope.of(measured))
        federation.settle()
    # Then few are kept, and the others rejected
    ledger = LedgerReader(tmp_path)
    assert ledger.count("evaluations") == 8
    assert sums.rejected(ledger) == {"evaluated": 92}
    assert verify(ledger) == []
