"""A bit flips in what a run has on its disk: it is said when the run goes on, or by verify, or
changes nothing.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from fluffle.aggregator.ledger.damage import blamed
from fluffle.aggregator.ledger.reader import LEDGER, DamagedLedger, LedgerReader
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.verify import verify
from fluffle.aggregator.verify.replay import replay
from fluffle.schemas import UserError
from tests.aggregator.scripted import Federation

WAL = f"{LEDGER}-wal"
#: Bits that are flipped in each file, one after the other.
FLIPS = 60


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an aggregator leaves that is killed after two versions, with an open buffer."""
    folder = tmp_path_factory.mktemp("killed")
    rules = {"quorum": 3, "deadline_s": 1000.0, "hold_s": 1.0}
    federation = Federation(folder / "live", aggregation=rules)
    for _ in range(2):
        federation.answer(4)
    federation.wait(2.0)  # the open buffer is recorded
    shutil.copytree(folder / "live", folder / "killed")
    federation.die()
    (folder / "killed" / f"{LEDGER}-shm").unlink()
    return folder / "killed"


@pytest.fixture(scope="module")
def closed(killed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one file, without a log."""
    folder = tmp_path_factory.mktemp("closed") / "run"
    shutil.copytree(killed, folder)
    Ledger(folder).close()
    assert not (folder / WAL).exists()
    return folder


def flipped(folder: Path, file: Path, bit: int, place: Path) -> Path:
    """A copy of the folder with one bit of a file the other way."""
    copy = place / "flipped"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    content = bytearray((copy / file).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (copy / file).write_bytes(content)
    return copy


def bits(folder: Path, file: Path) -> list[int]:
    size = (folder / file).stat().st_size * 8
    return random.Random(str(file)).sample(range(size), min(FLIPS, size))


def gone_on(folder: Path, sql: Sequence[str] = ()) -> list[str]:
    """What the ledger holds when a run has gone on from it: all, or what is asked for.

    Raises: UserError.
    """
    with blamed(folder), closing(Ledger(folder)) as ledger:
        ledger.load()
        asked = [repr(ledger.query(one)) for one in sql]
    with closing(sqlite3.connect(folder / LEDGER)) as db:
        return asked if sql else list(db.iterdump())


def verified(folder: Path) -> list[str]:
    """What verify has to say."""
    try:
        with blamed(folder), closing(LedgerReader(folder)) as ledger:
            if found := verify(ledger):
                return found
            replayed = replay(ledger)
            return [replayed.problem] if replayed.problem else []
    except UserError as error:
        return [str(error)]


def test_no_flip_in_the_log_is_silent(killed: Path, tmp_path: Path, said: list[str]) -> None:
    # Given all that an undamaged run goes on from
    shutil.copytree(killed, tmp_path / "whole")
    whole = gone_on(tmp_path / "whole")
    became: Counter[str] = Counter()
    for bit in bits(killed, Path(WAL)):
        folder = flipped(killed, Path(WAL), bit, tmp_path)
        about_log = [line for line in verified(folder) if "write-ahead log" in line]
        if about_log:
            # Then it is refused, where verify says why
            with pytest.raises(DamagedLedger, match="write-ahead log"):
                gone_on(folder)
            became["refused"] += 1
            continue
        said.clear()
        same = gone_on(folder) == whole
        # Or the last transaction does not count, as when power is lost, and that is said
        torn = any(line.startswith("the last record in") for line in said)
        assert same or torn, bit
        became["torn" if torn else "the same"] += 1
    assert became["refused"] > FLIPS / 2


def test_a_flip_in_the_last_transaction_is_said(
    killed: Path, tmp_path: Path, said: list[str]
) -> None:
    size = (killed / WAL).stat().st_size
    folder = flipped(killed, Path(WAL), (size - 2000) * 8, tmp_path)
    gone_on(folder)
    assert [line for line in said if "was not written to its end" in line]


@pytest.mark.parametrize("kind", ["weights", "updates"])
def test_every_flip_in_a_file_beside_the_ledger_is_found(
    closed: Path, tmp_path: Path, kind: str
) -> None:
    files = [path.relative_to(closed) for path in sorted((closed / kind).iterdir())]
    assert files
    assert verified(closed) == []
    for file in files:
        for bit in bits(closed, file):
            folder = flipped(closed, file, bit, tmp_path)
            assert verified(folder), (file, bit)


def test_a_flip_in_the_database_is_said_or_takes_nothing_that_counts(
    closed: Path, tmp_path: Path
) -> None:
    # Given what a run's accounts are: which update counts where, and what versions are
    accounts = (
        "SELECT update_id, disposition, version, position FROM updates ORDER BY 1",
        "SELECT version, file, weights_sha256 FROM versions ORDER BY 1",
    )
    shutil.copytree(closed, tmp_path / "whole")
    whole = gone_on(tmp_path / "whole", accounts)
    became: Counter[str] = Counter()
    for bit in bits(closed, Path(LEDGER)):
        folder = flipped(closed, Path(LEDGER), bit, tmp_path)
        # Then verify names it, or the run is refused, or they are the same: in what else was
        # recorded a plausible value cannot be told from another
        if verified(folder):
            became["said"] += 1
            continue
        with suppress(UserError):
            assert gone_on(folder, accounts) == whole, bit
            became["the same"] += 1
    assert became["said"] > 0
