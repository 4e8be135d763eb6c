"""Run folders that were copied, restored or damaged: refused with one line, left as they are."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fluffle.aggregator.ledger.archive import Archive
from fluffle.aggregator.ledger.damage import blamed
from fluffle.aggregator.ledger.disk import cannot_write
from fluffle.aggregator.ledger.reader import LEDGER, LedgerReader
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.verify import verify
from fluffle.broker import Envelope
from fluffle.commands.verify import verify_run
from fluffle.export import export
from fluffle.report.data import read_run
from fluffle.running import read_summary
from fluffle.schemas import Evaluation, UserError
from tests.aggregator.scripted import Federation


def files(folder: Path) -> dict[str, bytes]:
    """Every file but those of the ledger."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(LEDGER)
    }


def remove_ledger(folder: Path) -> None:
    for path in folder.glob(f"{LEDGER}*"):
        path.unlink()


def test_a_folder_with_weights_and_no_ledger_is_refused_and_kept(tmp_path: Path) -> None:
    # Given
    Federation(tmp_path).finish()
    remove_ledger(tmp_path)
    before = files(tmp_path)
    # When
    with pytest.raises(UserError, match="its ledger knows no run") as caught:
        Federation(tmp_path)
    # Then
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before
    assert not (tmp_path / LEDGER).exists()


def test_a_ledger_without_its_wal_is_refused_and_its_weights_are_kept(tmp_path: Path) -> None:
    # Given a copy of a running ledger's main file alone: what was made since is in the WAL
    federation = Federation(tmp_path)
    federation.answer(8)
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    before = files(copy)
    # When, then
    with pytest.raises(UserError, match=r"knows no run|ends with version"):
        Federation(copy)
    assert files(copy) == before


def test_a_ledger_that_is_older_than_its_weights_is_refused(tmp_path: Path) -> None:
    # Given a ledger that was restored without the files of its day
    federation = Federation(tmp_path)
    federation.answer(4)
    federation.die()
    old = (tmp_path / LEDGER).read_bytes()
    federation.start()
    federation.finish()
    federation.port.close()
    remove_ledger(tmp_path)
    (tmp_path / LEDGER).write_bytes(old)
    before = files(tmp_path)
    # When, then
    with pytest.raises(UserError, match=r"ends with version 0 of epoch 1, but there are weights"):
        federation.start()
    assert files(tmp_path) == before


def test_a_restored_folder_goes_on_above_the_epoch_that_the_broker_knows(tmp_path: Path) -> None:
    # Given a copy of a run folder, and aggregators that led the same run after it was made
    folder, copy = tmp_path / "run", tmp_path / "copy"
    federation = Federation(folder)
    federation.answer(4)
    federation.die()
    shutil.copytree(folder, copy)
    for _ in range(5):
        federation.start()
        federation.die()
    shutil.rmtree(folder)
    copy.rename(folder)
    # When the copy is led
    federation.start()
    # Then workers take its models for the newest, and the run goes on to its end
    assert federation.service.coordinator is not None
    assert federation.service.coordinator.run.epoch == 7
    federation.finish()
    assert verify(LedgerReader(folder)) == []


def test_a_restored_folder_that_the_broker_is_ahead_of_is_refused(tmp_path: Path) -> None:
    # Given a copy of a run folder, and versions that were made after it
    folder, copy = tmp_path / "run", tmp_path / "copy"
    federation = Federation(folder)
    federation.answer(4)
    federation.die()
    shutil.copytree(folder, copy)
    federation.start()
    federation.finish()
    federation.port.close()
    shutil.rmtree(folder)
    copy.rename(folder)
    # When, then
    with pytest.raises(UserError, match="the broker has version 6 of run run, and the ledger in"):
        federation.start()
    ledger = LedgerReader(folder)
    assert (ledger.meta["epoch"], ledger.latest_version()) == ("1", 0)


def test_an_archive_is_never_opened_over_another(tmp_path: Path) -> None:
    # Given
    first = Archive(tmp_path, 1)
    first.add("a", b"all that is left")
    first.sync()
    # When, then
    with pytest.raises(UserError, match="File exists"):
        Archive(tmp_path, 1).add("b", b"other")
    assert [p.read_bytes() for p in (tmp_path / "updates").iterdir()] == [b"all that is left"]


def test_a_damaged_ledger_is_one_line(tmp_path: Path) -> None:
    # Given pages in the middle of the file that are noise
    Federation(tmp_path).finish()
    ledger = tmp_path / LEDGER
    Ledger(tmp_path).close()
    body = bytearray(ledger.read_bytes())
    body[8192:] = b"\xa5" * (len(body) - 8192)
    ledger.write_bytes(bytes(body))
    # When, then
    with pytest.raises(UserError, match=r"damaged|no ledger") as caught:
        Federation(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_deleted_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    federation = Federation(tmp_path)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    # When, then
    with pytest.raises(UserError, match=r"cannot delete .*model-v0.*: Operation not permitted"):
        federation.finish()


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "make room"), (errno.EIO, "see to the disk")]
)
def test_only_a_full_disk_wants_room(tmp_path: Path, number: int, says: str) -> None:
    line = str(cannot_write(tmp_path, OSError(number, "why")))
    assert says in line
    assert ("make room" in line) == (number == errno.ENOSPC)


def test_a_superseded_buffer_file_is_deleted(tmp_path: Path) -> None:
    # Given a run with partial checkpoints, one after the other
    rules = {"quorum": 8, "hold_s": 1.0, "deadline_s": 1e6}
    federation = Federation(tmp_path, aggregation=rules)
    for _ in range(8):
        federation.answer(1)
        federation.wait(2.0)
    # Then only the last one's file is there, and it is enough to go on
    assert len(list((tmp_path / "weights").glob("buffer-*"))) == 1
    federation.die()
    federation.start()
    assert verify(LedgerReader(tmp_path)) == []


DAMAGE = (
    "UPDATE meta SET value = 'x' WHERE key = 'experiment'",
    "UPDATE meta SET value = x'ff' WHERE key = 'epoch'",
    "UPDATE meta SET value = 'x' WHERE key = 'turn'",
    "UPDATE meta SET value = 'x' WHERE key = 'best'",
    "DELETE FROM meta WHERE key = 'status'",
    "DROP TABLE updates",
    "UPDATE updates SET metrics = 'x'",
    "UPDATE updates SET examples = 'x'",
    "UPDATE updates SET client = x'ff00'",
    "UPDATE versions SET elapsed_s = 'x'",
    "UPDATE evaluations SET metrics = '[]'",
    """UPDATE evaluations SET metrics = '{"loss": "x"}'""",
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_values_that_no_aggregator_writes_are_one_line(tmp_path: Path, damage: str) -> None:
    # Given a run that was evaluated, and a ledger that SQLite can read and we cannot
    federation = Federation(tmp_path)
    federation.answer(4)
    measured = Evaluation(
        run=federation.service.coordinator.run,
        version=1,
        worker="e",
        metrics={"loss": 0.5},
        examples=9,
    )
    federation.worker.submit(Envelope.of(measured))
    federation.settle()
    federation.die()
    with closing(sqlite3.connect(tmp_path / LEDGER)) as db:
        db.execute(damage)
        db.commit()
    # When it is led, verified, exported and reported, then each works or says one line
    for use in (
        federation.start,
        lambda: verify_run(tmp_path, replay=False, url="", federation="fluffle"),
        lambda: export(tmp_path, "csv", "last", tmp_path / "metrics.csv"),
        lambda: export(tmp_path, "npz", "best", tmp_path / "best.npz"),
        lambda: read_summary(tmp_path, 0.0),
        lambda: read_run(tmp_path, "run"),
    ):
        said = ""
        try:
            use()
        except UserError as error:
            said = str(error)
        assert "\n" not in said


def test_what_is_no_damage_is_blamed_on_no_ledger(tmp_path: Path) -> None:
    # Given a good ledger, and a mistake of ours
    Federation(tmp_path).finish()
    # When, then
    with pytest.raises(KeyError, match="ours"), blamed(tmp_path):
        raise KeyError("ours")
