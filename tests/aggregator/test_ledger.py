"""The ledger and its files: one transaction per record, nothing counted twice or half there."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.coordinator.effects import Fold, MakeVersion, SaveBuffer
from fluffle.aggregator.ledger.retention import needed_files
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.weights import Store
from fluffle.aggregator.ledger.writer import Ledger, StaleLeader
from fluffle.aggregator.verify import verify
from fluffle.schemas import Evaluation, Experiment, Run, UserError
from fluffle.schemas.messages import state_name


def state(value: float) -> dict[str, Any]:
    return {"model/trainable/0": np.full(4, value, np.float32)}


def fold(turn: int, base_version: int = 0, staleness: int = 0) -> Fold:
    client = str(turn % 10)
    return Fold(f"run:{turn}:{client}", client, turn, base_version, staleness, 10, "w")


def opened(folder: Path, experiment: Experiment | None = None) -> Ledger:
    ledger = Ledger(folder)
    ledger.open_run(experiment or Experiment(), "run", 1000)
    ledger.lead()
    return ledger


def made(version: int, *folds: Fold, turn: int = 0) -> MakeVersion:
    return MakeVersion(version, state(version), "quorum" if version else "initial", folds, turn)


def test_a_version_and_what_it_counts_are_there_after_reopening(tmp_path: Path) -> None:
    # Given a ledger with two versions
    ledger = opened(tmp_path)
    ledger.make_version(made(0), {}, 1.0, keep=3)
    folds = [fold(t) for t in (1, 2, 3)]
    ledger.make_version(made(1, *folds, turn=9), {"run:1:1": 77}, 2.5, keep=3)
    ledger.close()
    # When it is opened again
    again = opened(tmp_path)
    checkpoint = again.load()
    # Then everything is as it was
    assert (checkpoint.version, checkpoint.turn, checkpoint.updates) == (1, 9, 3)
    assert checkpoint.elapsed_s == 2.5
    assert checkpoint.state is not None
    assert np.array_equal(checkpoint.state["model/trainable/0"], np.full(4, 1, np.float32))
    assert again.seen("run:2:2")
    assert not again.seen("run:4:4")
    assert verify(again) == []
    assert summarise(again)["bytes_up"] == 77


def test_an_update_cannot_be_counted_twice(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.make_version(made(0), {}, 0.0, keep=3)
    ledger.make_version(made(1, fold(1)), {}, 0.0, keep=3)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.make_version(made(2, fold(1)), {}, 0.0, keep=3)
    assert ledger.latest_version() == 1


def test_a_partial_checkpoint_comes_back_with_its_sums_and_folds(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.make_version(made(0), {}, 0.0, keep=3)
    sums = {**state(0), "buffer/trainable/0": np.full(4, 2.5)}
    ledger.save_buffer(SaveBuffer(sums, [fold(1), fold(2)], [], 5), {}, 0.0)
    ledger.close()
    checkpoint = opened(tmp_path).load()
    assert [f.update_id for f in checkpoint.buffered] == ["run:1:1", "run:2:2"]
    assert checkpoint.state is not None
    assert checkpoint.state["buffer/trainable/0"].flags.writeable
    assert checkpoint.state["buffer/trainable/0"].dtype == np.float64
    assert checkpoint.turn == 5


def test_a_stale_leader_commits_nothing(tmp_path: Path) -> None:
    # Given a leader that was replaced without noticing
    old = opened(tmp_path)
    old.make_version(made(0), {}, 0.0, keep=3)
    new = opened(tmp_path)
    # When it makes a version
    with pytest.raises(StaleLeader):
        old.make_version(made(1, fold(1), fold(2), fold(3)), {}, 0.0, keep=3)
    # Then nothing has changed, and the new leader goes on
    assert new.latest_version() == 0
    new.make_version(made(1, fold(4), fold(5), fold(6)), {}, 0.0, keep=3)
    assert verify(new) == []


def test_what_each_client_was_left_with_follows_from_what_was_folded(tmp_path: Path) -> None:
    # Given clients 1 and 2, counted twice and once, and client 3 in the open buffer
    ledger = opened(tmp_path)
    ledger.make_version(made(0), {}, 0.0, keep=3)
    ledger.make_version(made(1, fold(11), fold(2)), {}, 0.0, keep=3)
    ledger.make_version(made(2, fold(1, 1), fold(4, 1)), {}, 0.0, keep=3)
    ledger.save_buffer(SaveBuffer(state(0), [fold(3, 2)], [], 5), {}, 0.0)
    # Then the chain is in the order of the versions, whatever the turns' numbers
    states = {
        "1": state_name(state_name("", 11, 0), 1, 1),
        "2": state_name("", 2, 0),
        "3": state_name("", 3, 2),
        "4": state_name("", 4, 1),
    }
    assert ledger.client_states() == states
    # When the run ends before that buffer is closed, it has never been
    ledger.finish("finished", "", [], {}, 0.0)
    assert ledger.client_states() == {k: name for k, name in states.items() if k != "3"}


def kept_versions(folder: Path) -> list[int]:
    return sorted(int(path.name[7:13]) for path in (folder / "weights").iterdir())


def evaluation(version: int, **metrics: float) -> Evaluation:
    run = Run(run_id="run", run_started=1000, epoch=1)
    return Evaluation(run=run, version=version, worker="e", metrics=metrics, examples=9)


def test_the_best_evaluated_version_keeps_its_weights(tmp_path: Path) -> None:
    # Given a run whose first version was the best
    ledger = opened(tmp_path, Experiment.model_validate({"aggregation": {"keep_versions": 2}}))
    assert ledger.best() is None
    accuracies = {0: 0.1, 1: 0.9, 3: 0.5, 5: 0.4}
    for version in range(8):
        folds = [fold(version * 3 + i, max(0, version - 1)) for i in range(3)] if version else []
        ledger.make_version(made(version, *folds), {}, 0.0, keep=2)
        if version in accuracies:
            ledger.record_evaluation(evaluation(version, accuracy=accuracies[version]), 0.0)
    # Then its file stays, and a check wants it
    assert kept_versions(tmp_path) == [1, 6, 7]
    assert verify(ledger) == []
    best = ledger.best()
    assert best is not None
    assert best[0] == 1
    (tmp_path / "weights" / best[1]).unlink()
    assert ["version 1 are missing" in line for line in verify(ledger)] == [True]


def test_a_version_whose_evaluation_is_under_way_keeps_its_weights(tmp_path: Path) -> None:
    # Given every sixth update evaluated, and an evaluation that takes six versions of three
    tables = {"aggregation": {"keep_versions": 1}, "evaluation": {"every_updates": 6}}
    ledger = opened(tmp_path, Experiment.model_validate(tables))
    ledger.make_version(made(0), {}, 0.0, keep=1)
    ledger.record_evaluation(evaluation(0, loss=2.0), 0.0)
    for version in range(1, 9):
        folds = [fold(version * 3 + i, version - 1) for i in range(3)]
        ledger.make_version(made(version, *folds), {}, 0.0, keep=1)
    # Then those that it may be about are there when its answer comes
    assert kept_versions(tmp_path) == [0, *range(2, 9)]
    ledger.record_evaluation(evaluation(2, loss=1.0), 0.0)
    best = ledger.best()
    assert best is not None
    assert best[0] == 2
    # And an answer about weights that are gone is no best version
    ledger.record_evaluation(evaluation(1, loss=0.0), 0.0)
    assert ledger.best() == best


def test_only_the_last_versions_keep_their_weights(tmp_path: Path) -> None:
    ledger = opened(tmp_path, Experiment.model_validate({"aggregation": {"keep_versions": 2}}))
    for version in range(6):
        folds = [fold(version * 3 + i, max(0, version - 1)) for i in range(3)] if version else []
        ledger.make_version(made(version, *folds), {}, 0.0, keep=2)
    names = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert [name[:13] for name in names] == ["model-v000004", "model-v000005"]
    assert verify(ledger) == []


def test_a_folder_of_another_experiment_is_refused_but_it_may_stop_later(tmp_path: Path) -> None:
    opened(tmp_path).close()
    other = Experiment.model_validate({"training": {"epochs": 9}})
    with pytest.raises(UserError, match=r"training\.epochs"):
        Ledger(tmp_path).open_run(other, "x", 1)
    longer = Experiment.model_validate({"experiment": {"versions": 500}})
    assert Ledger(tmp_path).open_run(longer, "x", 1)


#: What versions wrote whose [aggregation] had every key of every strategy, used or not.
FLAT = {
    **{"strategy": "krum", "parameters": None, "quorum": 5, "deadline_s": 10.0},
    **{"on_deadline": "step", "min_updates": 1, "max_staleness": None, "staleness": None},
    **{"staleness_a": 0.5, "staleness_b": 4.0, "weighting": "examples", "server_optimizer": None},
    **{"server_learning_rate": None, "server_beta_1": None, "server_beta_2": None},
    **{"server_tau": None, "mixing": 0.1, "delay_threshold": None, "max_cache_mb": None},
    **{"trim": 0.3, "byzantine_updates": None, "krum_selected": None, "norm_bound": None},
    **{"control_option": None, "deterministic": False, "hold_s": 60.0, "keep_versions": 3},
    "keep_updates": True,
}


def test_a_run_of_a_version_that_wrote_every_strategys_keys_is_read_and_resumed(
    tmp_path: Path,
) -> None:
    # Given a run folder whose experiment was written down like that
    tables = {"aggregation": {"strategy": "krum", "quorum": 5, "keep_updates": True}}
    opened(tmp_path, Experiment.model_validate(tables)).close()
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db, db:
        (text,) = db.execute("SELECT value FROM meta WHERE key = 'experiment'").fetchone()
        document = {**json.loads(text), "aggregation": FLAT}
        document["partition"] |= {"shards_per_client": 2, "alpha": 0.5, "exponent": None}
        row = (json.dumps(document),)
        db.execute("UPDATE meta SET value = ? WHERE key = 'experiment'", row)
    # Then the same file resumes it, what differs is still named, and verify reads it
    other = {"aggregation": {**tables["aggregation"], "byzantine_updates": 0}}
    with pytest.raises(UserError, match=r"aggregation\.byzantine_updates differs"):
        Ledger(tmp_path).open_run(Experiment.model_validate(other), "x", 1)
    ledger = Ledger(tmp_path)
    assert ledger.open_run(Experiment.model_validate(tables), "x", 1)
    ledger.lead()
    assert verify(ledger) == []


def test_a_finished_run_has_nothing_left_to_do_unless_it_stops_later(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.make_version(made(0), {}, 0.0, keep=3)
    ledger.finish("finished", "", [fold(1)], {}, 1.0)
    assert verify(ledger) == []
    assert ledger.open_run(Experiment(), "x", 1) is False
    longer = Experiment.model_validate({"experiment": {"versions": 500}})
    assert ledger.open_run(longer, "x", 1) is True


def test_a_later_run_on_the_same_broker_always_has_the_later_start(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.open_run(Experiment(), "run", 1000)
    ledger.lead(newer_than=5000)
    assert ledger.meta["run_started"] == "5001"
    ledger.lead(newer_than=10)
    assert ledger.meta["run_started"] == "5001"


def test_damaged_weights_are_found_when_read_and_by_verify(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.make_version(made(0), {}, 0.0, keep=3)
    path = next((tmp_path / "weights").iterdir())
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(UserError, match="damaged"):
        ledger.load()
    assert "missing or damaged" in verify(ledger)[0]


def test_a_file_that_is_no_ledger_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="is no ledger"):
        Ledger(tmp_path)


def test_a_name_that_was_never_finished_is_not_left_behind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="cannot travel"):
        store.write("model", 0, 1, {"trainable/0": np.array(["text"])})
    assert list(store.folder.iterdir()) == []


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from fluffle.aggregator.coordinator.effects import MakeVersion
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.schemas import Experiment, UserError

ledger = Ledger(Path(sys.argv[1]))
ledger.open_run(Experiment(), "run", 1000)
ledger.lead()
small = {"model/trainable/0": np.zeros(4, np.float32)}
ledger.make_version(MakeVersion(0, small, "initial", [], 0), {}, 0.0, 3)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
big = {"model/trainable/0": np.zeros(100_000, np.float32)}
try:
    ledger.make_version(MakeVersion(1, big, "quorum", [], 0), {}, 0.0, 3)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    # Given a process that may not write files of the size of the next version
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    # Then it says so in one line
    assert done.returncode == 2, done.stderr
    assert "Nothing is lost: make room" in done.stdout
    assert done.stdout.count("\n") == 1
    # And the version before is whole
    ledger = opened(tmp_path)
    assert ledger.load().version == 0
    assert verify(ledger) == []
    assert not list((tmp_path / "weights").glob("*.tmp"))


def test_a_leader_that_was_replaced_deletes_nothing_of_its_successor(tmp_path: Path) -> None:
    # Given a leader that stopped after its last commit, before it has cleaned up
    stale = opened(tmp_path)
    for version in range(3):
        stale.make_version(made(version), {}, 1.0, keep=3)
    # And its successor, which has written a file that it has not committed yet
    successor = Ledger(tmp_path)
    successor.lead()
    written = successor.store.write("model", 3, successor.epoch, state(3))
    # When the old leader wakes up and goes on with its cleaning
    stale.store.keep(needed_files(stale, 1, 0, False), stale.epoch)
    # Then what it made itself is cleaned away, and nothing of the other's
    assert successor.store.intact(written)
    assert {path.name for path in successor.store.folder.iterdir()} == {
        written,
        *(name for (name,) in stale.query("SELECT file FROM versions WHERE version = 2")),
    }


def test_of_two_aggregators_that_start_at_once_the_second_goes_on_with_the_firsts_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given one that stands still just before it enters a run into an empty ledger
    slow, quick = Ledger(tmp_path, durable=False), Ledger(tmp_path, durable=False)
    enters = slow._transaction

    def stopped(check: bool = True) -> AbstractContextManager[None]:
        if not quick.epoch:
            quick.open_run(Experiment(), "quick", 1)
            quick.lead()
        return enters(check)

    monkeypatch.setattr(slow, "_transaction", stopped)
    # When it goes on after another has entered the run and leads it
    slow.open_run(Experiment(), "slow", 2)
    slow.lead()
    # Then it is the same run, in its second epoch, and the first leader is a stale one
    assert (slow.meta["run_id"], slow.epoch) == ("quick", 2)
    with pytest.raises(StaleLeader):
        quick.record_duplicate()
    slow.close()
    quick.close()


def test_an_aggregator_that_stood_still_before_it_led_does_not_take_up_what_ended_meanwhile(
    tmp_path: Path,
) -> None:
    # Given one that has seen that the run goes on, and stands still before it begins its epoch
    slow, quick = Ledger(tmp_path, durable=False), Ledger(tmp_path, durable=False)
    slow.open_run(Experiment(), "run", 1)
    # When another leads meanwhile, and ends the run
    quick.open_run(Experiment(), "run", 1)
    quick.lead()
    quick.finish("finished", "", [], {}, 1.0)
    # Then the first learns that it came too late, and the run stays ended
    with pytest.raises(StaleLeader, match="epoch 1"):
        slow.lead()
    assert (slow.meta["status"], slow.meta["epoch"]) == ("finished", "1")
    slow.close()
    quick.close()


def test_a_run_keeps_its_clients_data_whatever_is_to_end_it(tmp_path: Path) -> None:
    # Given a run without a validation part, as all were before there were any
    opened(tmp_path, Experiment.model_validate({})).close()
    # When it goes on with a target, which would take one from its clients
    stop = {"experiment": {"target_accuracy": 0.9}}
    with pytest.raises(UserError, match=r"task\.validation differs"):
        Ledger(tmp_path).open_run(Experiment.model_validate(stop), "x", 1)
    # Then it has to be said that the test examples decide
    said = Experiment.model_validate({**stop, "task": {"validation": 0.0}})
    Ledger(tmp_path).open_run(said, "x", 1)
