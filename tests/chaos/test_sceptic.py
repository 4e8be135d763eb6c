"""The sceptic finds what is wrong, also where ``fluffle verify`` has a bug and does not."""

from __future__ import annotations

import ast
import json
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

import fluffle.aggregator.verify as verifier
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.service import AggregatorService
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import Experiment
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.journal import Journal
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.services.slot import Slot, SlotContext
from tests.chaos import sceptic
from tests.worker.test_user_code import WEIGHTS, UsersTrainer

EXPERIMENT = Experiment.model_validate(
    {
        "experiment": {"versions": 4},
        "task": {"clients": 3},
        "participation": {"mode": "cohort", "sampling_rate": 1.0},
        "aggregation": {"quorum": 3, "deadline_s": 60.0},
        "evaluation": {"every_updates": 0},
    }
)
REJECT = (
    "INSERT INTO rejections (message_sha256, message_id, reason, times, at) "
    "SELECT 'x', update_id, 'not_finite', 1, 0"
)
COUNTED = "disposition = 'counted' AND turn > 0"

#: What may be wrong in a ledger -> the statement that makes it so, and what the sceptic says.
DAMAGE = {
    "a version is missing": ("DELETE FROM versions WHERE version = 2", "not 0 to 3"),
    "an update is missing": (
        f"DELETE FROM updates WHERE rowid = (SELECT MIN(rowid) FROM updates WHERE {COUNTED})",
        "says 3 updates",
    ),
    "an update is in another version": (
        "UPDATE updates SET version = 3, position = 3 WHERE version = 1 AND position = 2",
        "version 3 says 3 updates, and has those at [0, 1, 2, 3]",
    ),
    "two updates at one place": (
        "UPDATE updates SET position = 0 WHERE version = 2 AND position = 1",
        "has those at [0, 0, 2]",
    ),
    "a client counts twice": (
        "UPDATE updates SET client = '0' WHERE version = 1",
        "client 0 counts 3 times",
    ),
    "counted and rejected": (
        f"{REJECT} FROM updates WHERE {COUNTED} LIMIT 1",
        "and rejected",
    ),
    "a base version that cannot be": (
        "UPDATE updates SET base_version = 3 WHERE version = 1 AND position = 0",
        "base 3 and staleness 0 in 1",
    ),
    "epochs that go back": ("UPDATE versions SET epoch = 9 WHERE version = 1", "of epoch 1"),
    "an update that nobody sent": (
        "UPDATE updates SET update_id = 'run:99:0' WHERE version = 1 AND position = 0",
        "nobody sent it",
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended well, with its worker's journal beside it."""
    folder = tmp_path_factory.mktemp("sceptic")
    broker, trainer = EmbeddedBroker(), UsersTrainer(None)
    port = broker.worker("w", 1)
    shutdown = Shutdown(port)
    context = SlotContext(
        worker_id="w",
        port=port,
        shutdown=shutdown,
        states=ClientStates(),
        journal=Journal(folder / "w.jsonl"),
    )
    slot = Slot(context, lambda plan: trainer)  # type: ignore[arg-type,return-value]
    thread = threading.Thread(target=slot.run)
    thread.start()
    service = AggregatorService(
        EXPERIMENT, broker.aggregator(), folder / "out", run_id="run", initial=WEIGHTS
    )
    assert service.run() == "finished"
    shutdown.stop()
    thread.join()
    return folder


def copied(run: Path, to: Path, statement: str = "") -> Path:
    shutil.copytree(run, to, dirs_exist_ok=True)
    if statement:
        with closing(sqlite3.connect(to / "out" / "ledger.sqlite")) as db:
            assert db.execute(statement).rowcount > 0
            db.commit()
    return to


def doubts(folder: Path) -> list[str]:
    return sceptic.doubts(folder / "out", [folder / "w.jsonl"], set(), cohort=True)


def test_it_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(sceptic.__file__).read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not [name for name in names if name.startswith(("fluffle", "tests"))]


def test_a_run_that_went_well_leaves_nothing_to_doubt(run: Path) -> None:
    assert doubts(run) == []


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_is_found_where_verify_is_blind(
    run: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a ledger in which something is wrong, and a verify with a bug: it finds nothing
    statement, says = DAMAGE[what]
    folder = copied(run, tmp_path, statement)
    monkeypatch.setattr(verifier, "CHECKS", ())
    assert verifier.verify(LedgerReader(folder / "out")) == []
    # Then the sceptic finds it
    assert [line for line in doubts(folder) if says in line], doubts(folder)


def test_a_confirmed_update_that_is_nowhere_is_found(run: Path, tmp_path: Path) -> None:
    # Given a journal with one more update that the broker has confirmed
    folder = copied(run, tmp_path)
    with (folder / "w.jsonl").open("a") as journal:
        for line in ("sending", "confirmed"):
            entry = {"what": line, "type": sceptic.UPDATE, "update_id": "run:77:1"}
            journal.write(json.dumps(entry) + "\n")
    # Then it is missed, unless it is still in a queue
    assert doubts(folder) == ["update run:77:1 was confirmed 1 times, and is nowhere"]
    queued = {"run:77:1"}
    assert sceptic.doubts(folder / "out", [folder / "w.jsonl"], queued, cohort=True) == []


def test_weights_that_have_changed_are_found(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    newest = max((folder / "out" / "weights").glob("model-*"))
    damaged = bytearray(newest.read_bytes())
    damaged[-1] ^= 1
    newest.write_bytes(damaged)
    assert doubts(folder) == [f"{newest.name} has not the hash that is in its name"]
