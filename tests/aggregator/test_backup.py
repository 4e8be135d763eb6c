"""Copies of a run folder: made while it is led, restored, and led again (docs/backup.md)."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.verify import replay, verify
from fluffle.backup import back_up
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import UserError
from tests.aggregator.scripted import Federation


def versions(folder: Path) -> list[str]:
    with closing(LedgerReader(folder)) as ledger:
        rows = ledger.query("SELECT weights_sha256 FROM versions ORDER BY version")
    return [sha for (sha,) in rows]


def make_versions(federation: Federation, count: int) -> None:
    wanted = len(versions(federation.folder)) + count
    while len(versions(federation.folder)) < wanted:
        federation.answer(4)


def restore(copy: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)


def test_a_copy_made_under_a_leader_is_whole_and_goes_on_where_it_was(tmp_path: Path) -> None:
    # Given a run with an open buffer and a copy of it
    run, copy = tmp_path / "run", tmp_path / "copy"
    federation = Federation(run, experiment={"versions": 50}, aggregation={"keep_versions": 1})
    make_versions(federation, 2)
    federation.answer(3)
    federation.service.pause()
    assert back_up(run, copy) == len(versions(run)) - 1
    # When versions are made faster than files are copied
    with pytest.raises(UserError, match="faster than they can be copied"):
        back_up(run, tmp_path / "busy", between=lambda: make_versions(federation, 2))
    assert not list(tmp_path.glob("busy*"))
    # Then the copy is as it was, can be checked, and recomputes
    with closing(LedgerReader(copy)) as ledger:
        assert verify(ledger) == []
        assert replay(ledger).problem is None
    # And what was made meanwhile is in none
    made = [2, 0]
    version = back_up(
        run, tmp_path / "second", between=lambda: make_versions(federation, made.pop(0))
    )
    assert version == len(versions(run)) - 1
    assert not made
    with pytest.raises(UserError, match="is there already"):
        back_up(run, copy)
    with pytest.raises(UserError, match="is no run folder"):
        back_up(tmp_path / "none", tmp_path / "third")


def test_a_copy_is_led_on_after_restarts_that_the_broker_has_seen(tmp_path: Path) -> None:
    # Given a run that was copied, and whose aggregator has been started twice since
    run, copy = tmp_path / "run", tmp_path / "copy"
    federation = Federation(run)
    make_versions(federation, 2)
    federation.die()
    back_up(run, copy)
    for _ in range(2):
        federation.start()
        federation.die()
    before = federation.worker.newest_model()
    # When the copy is restored
    restore(copy, run)
    federation.start()
    # Then workers follow it, although the broker has seen later epochs than the copy knows
    newest = federation.worker.newest_model()
    assert before is not None
    assert newest is not None
    assert newest.headers["epoch"] > before.headers["epoch"]
    # And it ends well
    federation.finish()
    with closing(LedgerReader(run)) as ledger:
        assert verify(ledger) == []
        assert ledger.meta["status"] == "finished"


def test_a_copy_that_is_older_than_what_sites_have_seen_is_refused(tmp_path: Path) -> None:
    # Given a copy, and versions that were made since
    run, copy = tmp_path / "run", tmp_path / "copy"
    federation = Federation(run)
    make_versions(federation, 2)
    back_up(run, copy)
    make_versions(federation, 1)
    assert len(versions(run)) > len(versions(copy))
    federation.die()
    # When it is restored
    restore(copy, run)
    # Then it says so in one line, and changes nothing
    with pytest.raises(UserError, match="restored from an older copy") as caught:
        federation.start()
    assert "\n" not in str(caught.value)
    federation.port.close()
    assert versions(run) == versions(copy)
    # But a broker that has seen nothing takes it
    federation.broker = EmbeddedBroker(lambda: federation.now)
    federation.worker = federation.broker.worker("worker", 64)
    federation.start()
    federation.finish()
    assert len(versions(run)) > len(versions(copy))
