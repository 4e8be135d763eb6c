"""What verify finds: a real run, damaged in every way, and the violation that it names."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from fluffle.aggregator.ledger.archive import UPDATES
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.weights import Store
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.verify import verify
from fluffle.aggregator.verify.live import seen_at_broker, unpublished_end, wrong_at_broker
from fluffle.broker import Envelope
from fluffle.broker.admin.inspection import FederationView
from fluffle.commands.verify import verify_run
from fluffle.schemas import Experiment, GlobalModel, UserError, decode
from tests.aggregator.scripted import Federation

COHORT = {"mode": "cohort", "sampling_rate": 0.5}
DETERMINISTIC = {"deterministic": True, "on_deadline": "extend", "deadline_s": 1000.0}


def finished(folder: Path) -> Path:
    """Six versions of three updates each, all kept; versions 0, 4, 5 and 6 have their weights."""
    return Federation(folder, aggregation={"quorum": 3, "deadline_s": 1000.0}).finish(3)


def stopped(folder: Path) -> Path:
    """A deterministic cohort in the middle: two updates wait for their place."""
    rules = {**DETERMINISTIC, "hold_s": 1.0}
    federation = Federation(folder, participation=COHORT, aggregation=rules)
    federation.answer(1)
    federation.answer(2)
    federation.wait(2.0)
    federation.die()
    return folder


def violations(folder: Path, sabotage: str = "") -> list[str]:
    ledger = Ledger(folder)
    for statement in filter(None, sabotage.split(";")):
        ledger.query(statement)
    ledger.close()
    reader = LedgerReader(folder)
    found = verify(reader)
    reader.close()
    return found


@pytest.mark.parametrize("run", [finished, stopped])
def test_a_run_in_order_has_nothing_wrong(tmp_path: Path, run: Callable[[Path], Path]) -> None:
    assert violations(run(tmp_path)) == []


@pytest.mark.parametrize(
    ("sabotage", "says"),
    [
        ("DELETE FROM versions WHERE version = 1", "version 1 is missing"),
        ("UPDATE versions SET epoch = 0 WHERE version = 2", "after one of epoch 1"),
        ("UPDATE versions SET epoch = 9", "only 1 have begun"),
        (
            "UPDATE versions SET file = 'model-v000005-e1-0.msgpack' WHERE version = 6",
            "version 6 of epoch 1 is in a file of another: model-v000005",
        ),
        ("UPDATE versions SET closed_by = 'whim' WHERE version = 3", "closed by 'whim'"),
        ("UPDATE versions SET closed_by = 'initial' WHERE version = 3", "closed by 'initial'"),
        ("UPDATE versions SET updates = 2 WHERE version = 1", "version 1 says it counts 2"),
        ("DELETE FROM updates WHERE turn = 3", "says it counts 3 updates; the ledger has 2"),
        (
            "DELETE FROM updates WHERE turn = 3; UPDATE versions SET updates = 2",
            "was closed by quorum with only 2 updates",
        ),
        ("UPDATE updates SET disposition = 'unused' WHERE turn = 3", "unused in version"),
        ("UPDATE updates SET disposition = 'lost' WHERE turn = 3", "lost in version"),
        ("UPDATE updates SET version = 9 WHERE turn = 3", "counted in version 9"),
        (
            "UPDATE updates SET disposition = 'buffered', version = NULL WHERE turn = 3",
            "1 updates are still buffered",
        ),
        (
            "UPDATE updates SET position = 0 WHERE version = 4",
            "the 3 updates of version 4 have 1 positions, from 0 to 0",
        ),
        (
            "UPDATE updates SET position = position + 1 WHERE version = 4",
            "have 3 positions, from 1 to 3",
        ),
        ("UPDATE updates SET update_id = 'run:7:7' WHERE turn = 3", "does not belong to turn 3"),
        ("UPDATE updates SET client = '9' WHERE turn = 3", "of client 9"),
        ("UPDATE updates SET examples = 0 WHERE turn = 3", "was trained on 0 examples"),
        ("UPDATE updates SET staleness = 4 WHERE turn = 3", "has staleness 4"),
        ("UPDATE updates SET base_version = 5 WHERE turn = 3", "trained from version 5"),
        ("INSERT INTO rejections VALUES ('a', 'b', 'whim', 1, 0, '')", "no known reason: whim"),
        ("INSERT INTO rejections VALUES ('a', 'b', 'late', 0, 0, '')", "was rejected 0 times"),
        ("INSERT INTO dropouts VALUES ('other:1:1', '1', 0)", "other:1:1 of the dropouts is none"),
        (
            "INSERT INTO failures VALUES ('other:1:1', '1', 'w', 'why', 0, 1)",
            "other:1:1 of the failures is none of this run",
        ),
        (
            "INSERT INTO evaluations VALUES (7, 'e', '{}', 1, 0, 0)",
            "e evaluated version 7; the newest is 6",
        ),
        (
            "INSERT INTO evaluations VALUES (3, 'e', '{\"loss\": NaN}', 1, 0, 0)",
            "e measured version 3 as",
        ),
        ("INSERT INTO evaluations VALUES (3, 'e', '{', 1, 0, 0)", "what no aggregator writes"),
        ("UPDATE meta SET value = 'asleep' WHERE key = 'status'", "the run is 'asleep'"),
        ("UPDATE meta SET value = '-1' WHERE key = 'turn'", "the run's turn is no count: -1"),
        ("UPDATE meta SET value = 'x' WHERE key = 'epoch'", "the run's epoch is no count: x"),
        ("INSERT INTO meta VALUES ('duplicates', 'x')", "the run's duplicates is no count: x"),
        ("DELETE FROM meta WHERE key = 'experiment'", "what no aggregator writes"),
        ("INSERT INTO waiting VALUES ('run:3:1', 'x')", "but is not in the open buffer"),
        (
            "UPDATE versions SET weights_sha256 = 'f00' WHERE version = 6",
            "the weights of version 6 are not those recorded",
        ),
        ("DELETE FROM kept WHERE update_id LIKE 'run:3:%'", "is recorded, but was not kept"),
        (
            "UPDATE kept SET update_id = 'run:99:1' WHERE update_id LIKE 'run:3:%'",
            "update run:99:1 was kept, but is recorded nowhere",
        ),
        (
            "UPDATE kept SET start = start - 1 WHERE update_id LIKE 'run:3:%'",
            "lies over another in updates-e1-000001.msgpack",
        ),
        (
            "UPDATE kept SET start = start + 100000 WHERE update_id LIKE 'run:3:%'",
            "kept updates are missing: updates-e1-000001.msgpack has",
        ),
        ("UPDATE kept SET segment = 'gone'", "kept updates are missing: gone has 0 of"),
    ],
)
def test_a_damaged_ledger_is_named(tmp_path: Path, sabotage: str, says: str) -> None:
    assert says in "\n".join(violations(finished(tmp_path), sabotage))


@pytest.mark.parametrize(
    ("sabotage", "says"),
    [
        ("DELETE FROM waiting", "is in the open buffer, but its message is gone"),
        ("UPDATE waiting SET body = x'00'", "waits to be folded, but its message is damaged"),
        (
            "UPDATE waiting SET update_id = 'run:9:9' WHERE rowid = 1",
            "update run:9:9 waits to be folded, but is not in the open buffer",
        ),
        ("UPDATE meta SET value = 'finished' WHERE key = 'status'", "2 updates are still buffered"),
        (
            "UPDATE updates SET disposition = 'counted', version = 0 WHERE position = 1",
            "version 0 says it counts 1 updates; the ledger has 2",
        ),
    ],
)
def test_a_damaged_open_buffer_is_named(tmp_path: Path, sabotage: str, says: str) -> None:
    assert says in "\n".join(violations(stopped(tmp_path), sabotage))


@pytest.mark.parametrize(
    ("sabotage", "says"),
    [
        (
            "UPDATE updates SET client = '1' WHERE version = 1",
            "of its cohort 4 times",
        ),
        (
            "UPDATE updates SET staleness = 1, base_version = 0 WHERE version = 2",
            "who trained for another version",
        ),
    ],
)
def test_a_damaged_cohort_is_named(tmp_path: Path, sabotage: str, says: str) -> None:
    folder = Federation(tmp_path, participation=COHORT).finish()
    assert violations(folder) == []
    assert says in "\n".join(violations(folder, sabotage))


def test_too_stale_is_named(tmp_path: Path) -> None:
    # Given a run whose limit is said to have been lower than what it counted
    folder = finished(tmp_path)
    ledger = Ledger(folder)
    assert ledger.count("updates WHERE staleness > 0")
    strict = Experiment.model_validate({"aggregation": {"max_staleness": 0, "keep_updates": True}})
    ledger.query("UPDATE meta SET value = ? WHERE key = 'experiment'", strict.model_dump_json())
    assert "over 0" in "\n".join(verify(ledger))


# ---- files


def weights_of(folder: Path, version: int) -> Path:
    return next((folder / "weights").glob(f"model-v{version:06d}-*"))


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)


@pytest.mark.parametrize("version", [0, 4, 6])
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_missing_and_damaged_weights_are_named(
    tmp_path: Path, version: int, damage: Callable[[Path], None]
) -> None:
    folder = finished(tmp_path)
    damage(weights_of(folder, version))
    (found,) = violations(folder)
    assert found.startswith(f"the weights of version {version} are missing or damaged")


def test_other_weights_under_the_right_name_are_named(tmp_path: Path) -> None:
    # Given a file that is whole, and of version 6 by its name, but another model
    folder = finished(tmp_path)
    name = Store(folder).write("model", 6, 1, {"model/trainable/0": np.ones(3, np.float32)})
    found = violations(folder, f"UPDATE versions SET file = '{name}' WHERE version = 6")
    assert found == [f"the weights of version 6 are not those recorded: {name}"]


def test_a_missing_open_buffer_is_named(tmp_path: Path) -> None:
    federation = Federation(tmp_path, aggregation={"quorum": 5, "hold_s": 1.0, "deadline_s": 99.0})
    federation.answer(1)
    federation.answer(2)
    federation.wait(2.0)
    federation.die()
    next((tmp_path / "weights").glob("buffer-*")).unlink()
    (found,) = violations(tmp_path)
    assert found.startswith("the open buffer is missing or damaged: buffer-v000000-e1-")


def test_a_missing_cache_entry_is_named(tmp_path: Path) -> None:
    folder = Federation(tmp_path, aggregation={"strategy": "ca2fl"}).finish(3)
    assert violations(folder) == []
    ledger = Ledger(folder)
    name = ledger.cache_files()[0]
    ledger.close()
    (folder / "weights" / name).unlink()
    assert violations(folder) == [f"what is kept for a client is missing or damaged: {name}"]


def test_a_truncated_segment_is_named(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    path = folder / UPDATES / "updates-e1-000001.msgpack"
    path.write_bytes(path.read_bytes()[:-1])
    assert "kept updates are missing" in violations(folder)[0]


def test_files_that_no_row_names_harm_nobody(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    Store(folder).write("model", 7, 1, {"model/trainable/0": np.ones(3, np.float32)})
    (folder / UPDATES / "updates-e9-000001.msgpack").write_bytes(b"half an upd")
    with (folder / UPDATES / "updates-e1-000001.msgpack").open("ab") as file:
        file.write(b"what came after the last record")
    assert violations(folder) == []


def test_a_damaged_database_is_named_whatever_is_asked_of_it(tmp_path: Path) -> None:
    # Given a ledger one page of which is noise
    folder = finished(tmp_path)
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        db.execute("PRAGMA journal_mode = DELETE")
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'updates'").fetchone()
    with (folder / "ledger.sqlite").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    reader = LedgerReader(folder)
    assert "ledger.sqlite is damaged" in verify(reader)[0]


# ---- the command


def test_the_first_violation_is_said_and_how_many_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path)
    violations(folder, "DELETE FROM versions WHERE version = 1")
    assert verify_run(folder, replay=True, url="", federation="fluffle") == 1
    first, rest = capsys.readouterr().out.splitlines()
    assert first == "wrong: version 1 is missing: after it comes 2"
    assert rest == "and 3 more, which may follow from it"


def test_verify_changes_nothing(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    before = {p: p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.is_file()}
    assert verify_run(folder, replay=True, url="", federation="fluffle") == 0
    assert before.items() <= {p: p.read_bytes() for p in folder.rglob("*.*")}.items()


def test_a_folder_that_is_none_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no ledger\.sqlite"):
        LedgerReader(tmp_path)
    Ledger(tmp_path).close()
    with pytest.raises(UserError, match="its ledger is empty"):
        LedgerReader(tmp_path)
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="is no ledger"):
        LedgerReader(tmp_path)


def test_a_run_on_a_read_only_disk_is_verified_by_anybody(tmp_path: Path) -> None:
    # Given a finished run in a folder that its reader may not write to
    with TemporaryDirectory() as place:
        folder = finished(Path(place) / "run")
        for left in folder.glob("ledger.sqlite-*"):
            left.unlink()
        Path(place).chmod(0o755)
        folder.chmod(0o555)
        # When somebody else verifies it
        reader = os.fork()
        if not reader:
            with suppress(PermissionError):
                os.setuid(65534)
            code = 9
            with suppress(Exception):
                code = verify_run(folder, replay=True, url="", federation="fluffle")
            os._exit(code)
        _, status = os.waitpid(reader, 0)
        folder.chmod(0o755)
        # Then all is well, and the folder as it was
        assert os.waitstatus_to_exitcode(status) == 0
        assert not list(folder.glob("ledger.sqlite-*"))


def test_weights_that_a_live_aggregator_has_replaced_are_not_missing(tmp_path: Path) -> None:
    # Given somebody who looks at one moment of a run
    federation = Federation(tmp_path, aggregation={"quorum": 3, "keep_versions": 1})
    federation.answer(1)
    federation.answer(3)
    reader = LedgerReader(tmp_path)
    with reader.snapshot():
        assert reader.latest_version() == 1
        # When the run goes on, and deletes the weights of that moment
        federation.answer(3)
        assert not list((tmp_path / "weights").glob("model-v000001-*"))
        # Then nothing is wrong
        assert verify(reader) == []
    federation.die()
    # But it would be, had the run not gone on
    weights_of(tmp_path, 2).unlink()
    with reader.snapshot():
        assert "version 2 are missing" in verify(reader)[0]


# ---- the broker


def sight(newest: GlobalModel | None, updates: int = 0, rejected: int = 0) -> FederationView:
    envelope = None if newest is None else Envelope.of(newest)
    return FederationView("there", updates=updates, rejected=rejected, led=False, newest=envelope)


@pytest.fixture
def published(tmp_path: Path) -> tuple[LedgerReader, GlobalModel]:
    """A finished run, and the last model that it published."""
    federation = Federation(tmp_path, aggregation={"quorum": 3})
    federation.finish(3)
    newest = federation.worker.newest_model()
    assert newest is not None
    model = decode(newest.body)
    assert isinstance(model, GlobalModel)
    return LedgerReader(tmp_path), model


Published = tuple[LedgerReader, GlobalModel]


def test_what_a_run_published_is_in_its_ledger(published: Published) -> None:
    ledger, model = published
    assert list(wrong_at_broker(ledger, sight(model))) == []
    assert unpublished_end(ledger, sight(model)) is None
    said = "\n".join(seen_at_broker(ledger, sight(model, updates=2, rejected=3)))
    assert "the newest model there is version 6 of epoch 1" in said
    assert "2 messages wait for an aggregator, beside 18 updates counted" in said
    assert "3 messages lie in updates.rejected, 0 were rejected by this run; the others" in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 7}, "version 7 was published, but the ledger ends with 6"),
        ({"version": 5}, "version 5 was published with other weights than recorded"),
        ({"updates": 19}, "made of 19 updates; the ledger counts 18"),
    ],
)
def test_a_model_that_the_ledger_does_not_know_is_named(
    published: Published, changes: dict[str, int], says: str
) -> None:
    ledger, model = published
    found = list(wrong_at_broker(ledger, sight(model.model_copy(update=changes))))
    assert says in "\n".join(found)


@pytest.mark.parametrize(
    ("epoch", "says"),
    [(9, "another aggregator leads this run elsewhere"), (0, "before it was made in epoch 1")],
)
def test_a_model_of_an_epoch_that_cannot_be_is_named(
    published: Published, epoch: int, says: str
) -> None:
    ledger, model = published
    run = model.run.model_copy(update={"epoch": epoch})
    assert says in next(wrong_at_broker(ledger, sight(model.model_copy(update={"run": run}))))


def test_a_finished_run_has_published_its_end(published: Published) -> None:
    ledger, model = published
    before = model.model_copy(update={"version": 5})
    assert "the newest that was published is 5" in (unpublished_end(ledger, sight(before)) or "")
    going_on = model.model_copy(update={"final": False})
    assert "and not as the last" in (unpublished_end(ledger, sight(going_on)) or "")


def test_what_cannot_be_compared_is_said(published: Published) -> None:
    ledger, model = published
    run = model.run.model_copy(update={"run_id": "other"})
    other = sight(model.model_copy(update={"run": run}))
    assert list(wrong_at_broker(ledger, other)) == []
    assert "the newest model there is of another run" in next(seen_at_broker(ledger, other))
    assert "there is no model" in next(seen_at_broker(ledger, sight(None)))
    refused = FederationView("there", unseen=["the newest model (ACCESS_REFUSED)"])
    assert list(seen_at_broker(ledger, refused)) == [
        "could not look at the newest model (ACCESS_REFUSED)"
    ]
