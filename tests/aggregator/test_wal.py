"""The end of SQLite's log: where it is torn, where it is damaged, and where it just ends."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from fluffle.aggregator.ledger.wal import Log, examine_log

FRAME = 24 + 4096


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A log of ten transactions of three frames and more, of a process that was killed."""
    with sqlite3.connect(tmp_path / "live", isolation_level=None) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (i INTEGER PRIMARY KEY, x BLOB)")
        for _ in range(10):
            db.execute("INSERT INTO t (x) VALUES (?)", (bytes(8000),))
        shutil.copy(tmp_path / "live-wal", tmp_path / "db-wal")
        shutil.copy(tmp_path / "live", tmp_path / "db")
    db.close()
    return tmp_path / "db"


def rows(database: Path) -> int:
    with sqlite3.connect(database) as db:
        return int(db.execute("SELECT COUNT(*) FROM t").fetchone()[0])


def change(database: Path, at: int, data: bytes) -> None:
    wal = database.with_name("db-wal")
    content = bytearray(wal.read_bytes())
    content[at : at + len(data)] = data
    wal.write_bytes(content)


def test_a_whole_log_has_nothing_wrong(database: Path) -> None:
    assert examine_log(database) == Log()
    assert examine_log(database.with_name("no such")) == Log()
    assert rows(database) == 10


@pytest.mark.parametrize("within", [0, 5, 10, 17, 300])
def test_a_flip_before_the_last_transaction_is_damage(database: Path, within: int) -> None:
    # Given a flip in a frame's header, its checksum or its page, of which SQLite says nothing
    at = 32 + 4 * FRAME + within
    before = database.with_name("db-wal").read_bytes()[at]
    change(database, at, bytes([before ^ 1]))
    found = examine_log(database)
    assert rows(database) < 10
    # Then it is damage
    assert found.damage is not None
    assert "frame 5 of its write-ahead log" in found.damage


def test_a_last_transaction_that_lacks_a_sector_is_torn(database: Path) -> None:
    size = database.with_name("db-wal").stat().st_size
    change(database, size - FRAME - 1024, b"\1" * 512)
    assert examine_log(database) == Log(torn=True)
    assert rows(database) == 9


def test_what_is_left_of_a_torn_transaction_behind_later_ones_is_no_damage(
    database: Path,
) -> None:
    # Given a torn transaction of many frames, and one of few that was written over its beginning
    with sqlite3.connect(database, isolation_level=None) as db:
        db.execute("INSERT INTO t (x) VALUES (?)", (bytes(80_000),))
        content = database.with_name("db-wal").read_bytes()
    shutil.copy(database, database.with_name("again"))
    (database.with_name("again-wal")).write_bytes(
        content[: -FRAME * 15] + bytes(FRAME) + content[-FRAME * 14 :]
    )
    again = database.with_name("again")
    assert examine_log(again) == Log(torn=True)
    with sqlite3.connect(again, isolation_level=None) as db:
        assert db.execute("SELECT COUNT(*) FROM t").fetchone() == (10,)
        db.execute("DELETE FROM t WHERE i = 1")
        # Then that is not taken for damage
        assert examine_log(again).damage is None
    db.close()


def test_a_header_that_is_not_as_it_was_written_is_damage(database: Path) -> None:
    change(database, 9, b"\7")
    assert (
        examine_log(database).damage == "the header of its write-ahead log is not as it was written"
    )


def test_a_transaction_that_was_not_committed_is_nothing_wrong(database: Path) -> None:
    wal = database.with_name("db-wal")
    wal.write_bytes(wal.read_bytes()[:-FRAME])
    assert examine_log(database) == Log()
    assert rows(database) == 9
