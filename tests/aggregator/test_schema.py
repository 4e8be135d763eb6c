"""The ledger's schema: an earlier one is migrated, a later one refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fluffle.aggregator.ledger.reader import LEDGER, LedgerReader
from fluffle.aggregator.ledger.schema import SCHEMA
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.verify import replay, verify
from fluffle.schemas import UserError
from tests.aggregator.scripted import Federation

#: What makes a ledger of today one from before schemas were counted.
BEFORE = (
    "DROP INDEX failures_by_client",
    "ALTER TABLE failures DROP COLUMN times",
    "ALTER TABLE updates DROP COLUMN norms",
    "DROP TABLE traffic",
    "DROP TABLE heard",
    "ALTER TABLE rejections DROP COLUMN sender",
    "PRAGMA user_version = 0",
)


def ask(folder: Path, *statements: str) -> int:
    """The answer to the last one, if it has one."""
    db = sqlite3.connect(folder / LEDGER, isolation_level=None)
    row = None
    for statement in statements:
        row = db.execute(statement).fetchone()
    db.close()
    return int(row[0]) if row else -1


def test_a_ledger_from_before_is_read_without_being_changed(tmp_path: Path) -> None:
    # Given
    Federation(tmp_path).finish()
    today = LedgerReader(tmp_path)
    summary = summarise(today)
    today.close()
    ask(tmp_path, *BEFORE)
    # When
    ledger = LedgerReader(tmp_path)
    # Then
    assert summarise(ledger) == summary
    assert verify(ledger) == []
    assert replay(ledger).problem is None
    assert ask(tmp_path, "PRAGMA user_version") == 0


def test_a_run_from_before_goes_on(tmp_path: Path) -> None:
    # Given a run that was stopped with updates in its open buffer
    federation = Federation(tmp_path)
    federation.answer(5)
    federation.service.pause()
    federation.die()
    ask(tmp_path, *BEFORE)
    # When it is resumed
    federation.start()
    federation.finish()
    # Then its ledger has today's schema, and everything in it holds
    assert ask(tmp_path, "PRAGMA user_version") == SCHEMA
    ledger = LedgerReader(tmp_path)
    assert verify(ledger) == []
    assert (replay(ledger).problem, ledger.latest_version()) == (None, 6)


def test_a_migration_that_is_cut_short_has_not_begun(tmp_path: Path) -> None:
    # Given a ledger from before in which the last step cannot be done
    Federation(tmp_path).finish()
    ask(tmp_path, *BEFORE[1:3], "PRAGMA user_version = 0", "ALTER TABLE updates ADD COLUMN norms")
    # When
    with pytest.raises(UserError):
        Ledger(tmp_path)
    # Then none has been done
    assert ask(tmp_path, "PRAGMA user_version") == 0
    assert ask(tmp_path, "SELECT COUNT(*) FROM pragma_table_info('failures')") == 5


@pytest.mark.parametrize("opens", [Ledger, LedgerReader])
def test_a_ledger_of_a_newer_version_is_refused_with_one_line(tmp_path: Path, opens: type) -> None:
    # Given
    Federation(tmp_path).finish()
    ask(tmp_path, f"PRAGMA user_version = {SCHEMA + 1}")
    # When, then
    with pytest.raises(UserError, match=r"written by a newer version of Fluffle \(ledger schema"):
        opens(tmp_path)
