"""Kept updates: every version comes out again byte for byte, whatever happened in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.ledger.archive import UPDATES, Archive
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.verify import Replayed, replay, verify
from fluffle.schemas import UserError
from fluffle.schemas.aggregation import strategies
from tests.aggregator.scripted import Federation

COHORT = {"mode": "cohort", "sampling_rate": 0.5}
DETERMINISTIC = {"deterministic": True, "on_deadline": "extend"}


def replayed(folder: Path) -> Replayed:
    """What a replay gives on a run whose ledger is in order."""
    ledger = LedgerReader(folder)
    assert verify(ledger) == []
    result = replay(ledger)
    ledger.close()
    return result


def hashes(folder: Path) -> list[str]:
    ledger = LedgerReader(folder)
    rows = ledger.query("SELECT weights_sha256 FROM versions ORDER BY version")
    ledger.close()
    return [sha256 for (sha256,) in rows]


#: What these strategies cannot do without.
NEEDS: dict[str, dict[str, Any]] = {
    "ringmaster": {"delay_threshold": 5},
    "norm-bounding": {"norm_bound": 3.0},
}
#: With fewer updates these withstand nobody, and are refused.
LARGER = ("krum", "multi-krum", "trimmed-mean")


@pytest.mark.parametrize("strategy", list(strategies()))
@pytest.mark.parametrize("mode", ["concurrent", "cohort", "deterministic"])
def test_every_version_comes_out_again(tmp_path: Path, strategy: str, mode: str) -> None:
    # Given a run of any strategy whose aggregator is replaced in the middle of its buffers
    rules = {"strategy": strategy, "hold_s": 1.0, "deadline_s": 1000.0, **NEEDS.get(strategy, {})}
    tables: dict[str, Any] = {"aggregation": rules}
    if mode != "concurrent":
        rate = 0.125 if strategies()[strategy].one_by_one else 0.5
        rate = 0.75 if strategy in LARGER else rate
        tables["participation"] = {"mode": "cohort", "sampling_rate": rate}
    elif strategy in LARGER:
        rules["quorum"] = 5
    if mode == "deterministic":
        rules |= DETERMINISTIC
    federation = Federation(tmp_path, **tables)
    for _ in range(3):
        federation.answer(2)
        federation.wait(2.0)
        federation.die()
        federation.start()
    federation.finish(2)
    # When it is replayed
    result = replayed(tmp_path)
    # Then every version has the recorded bytes
    assert result.problem is None
    assert (result.versions, result.other_bytes) == (6, [])
    assert "byte for byte" in str(result)
    assert len(set(hashes(tmp_path))) == 7


def test_compressed_updates_are_kept_as_they_came(tmp_path: Path) -> None:
    # Given a run whose clients send a fifth of their values, in four bits each
    steps = [{"kind": "top_k", "share": 0.2}, {"kind": "quantise", "bits": 4}]
    federation = Federation(tmp_path, update=steps)
    federation.answer(3)
    federation.die()
    federation.start()
    federation.finish()
    # Then that is what was kept, and it gives the recorded bytes
    result = replayed(tmp_path)
    assert (result.problem, result.versions, result.other_bytes) == (None, 6, [])
    # And other steps would be another experiment
    with pytest.raises(UserError, match=r"\(update differs\)"):
        Federation(tmp_path, update=steps[:1])


def test_central_noise_comes_out_again(tmp_path: Path) -> None:
    # Given a run whose sums are clipped and blurred, by a secret of its own
    privacy = {"clip_norm": 1.0, "noise_multiplier": 0.5, "noise": "seeded"}
    federation = Federation(tmp_path, privacy=privacy, aggregation={"strategy": "fedbuff"})
    federation.answer(3)
    federation.die()
    federation.start()
    federation.finish()
    assert replayed(tmp_path).problem is None
    # When the secret is another
    ledger = Ledger(tmp_path)
    ledger.query(f"UPDATE meta SET value = '{'ab' * 32}' WHERE key = 'noise_seed'")
    # Then so are the weights
    assert "version 1 comes out with other weights" in (replay(ledger).problem or "")


@pytest.mark.parametrize("deterministic", [False, True])
def test_crashes_in_the_middle_of_buffers_change_nothing(
    tmp_path: Path, deterministic: bool
) -> None:
    # Given a run whose aggregator dies every few updates, after and before partial checkpoints
    rules = DETERMINISTIC if deterministic else {}
    federation = Federation(
        tmp_path,
        participation=COHORT,
        aggregation={"strategy": "fedavg", "hold_s": 1.0, "deadline_s": 1000.0, **rules},
    )
    deaths = 0
    while federation.service.outcome is None:
        federation.answer(1 + deaths % 3)
        federation.wait(2.0 if deaths % 2 else 0.0)
        if federation.service.outcome is None:
            federation.die()
            federation.start()
            deaths += 1
    federation.service.close()
    # Then it replays to the recorded bytes
    result = replayed(tmp_path)
    assert deaths > 6
    assert (result.problem, result.versions, result.other_bytes) == (None, 6, [])


def test_an_open_buffer_has_the_sums_of_its_updates(tmp_path: Path) -> None:
    # Given a run that stands in the middle of a buffer, two of whose updates are recorded
    federation = Federation(tmp_path, aggregation={"quorum": 5, "hold_s": 1.0, "deadline_s": 99.0})
    federation.answer(1)
    federation.answer(2)
    federation.wait(2.0)
    federation.answer(1)
    federation.die()
    # Then the replay counts them, and not the one that only the broker has
    result = replayed(tmp_path)
    assert (result.problem, result.versions, result.updates) == (None, 0, 3)


def test_a_crash_between_file_and_transaction_leaves_bytes_that_harm_nobody(
    tmp_path: Path,
) -> None:
    # Given an aggregator that dies with updates on disk and no record of them
    federation = Federation(tmp_path, aggregation={"quorum": 3})
    federation.answer(3)
    orphans = Archive(tmp_path, epoch=9)
    orphans.add("run:99:1", b"an update that no row names")
    orphans.sync()
    federation.answer(2)
    federation.die()
    # When another goes on
    federation.start()
    federation.finish()
    # Then the run is in order, and every update was kept once
    result = replayed(tmp_path)
    assert (result.problem, result.versions) == (None, 6)
    ledger = LedgerReader(tmp_path)
    assert ledger.kept()[0] == ledger.count("updates") == result.updates
    assert (tmp_path / UPDATES / "updates-e9-000001.msgpack").exists()


def test_version_0_stays_to_replay_from(tmp_path: Path) -> None:
    federation = Federation(tmp_path, aggregation={"keep_versions": 1})
    federation.finish()
    names = sorted(path.name[:13] for path in (tmp_path / "weights").iterdir())
    assert names == ["model-v000000", "model-v000006"]


def test_a_run_that_ends_with_a_recorded_open_buffer_ends_well(tmp_path: Path) -> None:
    # Given a buffer with a partial checkpoint and an update beyond it
    tables: dict[str, Any] = {
        "experiment": {"versions": 6, "max_minutes": 1.0},
        "participation": COHORT,
        "aggregation": {**DETERMINISTIC, "hold_s": 1.0, "deadline_s": 1000.0},
    }
    federation = Federation(tmp_path, **tables)
    federation.answer(1)
    federation.answer(2)
    federation.wait(2.0)
    federation.answer(1)
    # When its time is over
    federation.wait(60.0)
    # Then all three are unused, and nothing waits that a longer run would fold
    assert federation.service.outcome == "finished"
    ledger = LedgerReader(tmp_path)
    assert ledger.count("updates WHERE disposition = 'unused'") == 3
    assert ledger.count("waiting") == 0
    ledger.close()
    federation.die()
    assert replayed(tmp_path).problem is None
    # And a longer run goes on from there
    longer = Federation(tmp_path, **tables | {"experiment": {"versions": 2}})
    longer.finish()
    assert replayed(tmp_path).versions == 2


def test_keep_updates_cannot_change_in_the_middle(tmp_path: Path) -> None:
    Federation(tmp_path, aggregation={"keep_updates": False}).die()
    with pytest.raises(UserError, match=r"aggregation\.keep_updates"):
        Federation(tmp_path, aggregation={"keep_updates": True})


def test_a_run_without_kept_updates_says_how_to_keep_them(tmp_path: Path) -> None:
    Federation(tmp_path, aggregation={"keep_updates": False}).finish()
    with pytest.raises(UserError, match=r"aggregation\.keep_updates = true"):
        replay(LedgerReader(tmp_path))


def test_the_disk_it_takes_is_said_beforehand(tmp_path: Path, said: list[str]) -> None:
    federation = Federation(tmp_path)
    federation.answer(1)
    (line,) = [line for line in said if "keeping updates takes up to 2" in line]
    assert "18 of 1.2" in line


DISK_FULL = """
import resource, signal, sys
from pathlib import Path
from fluffle.schemas import UserError
from tests.aggregator.scripted import Federation

federation = Federation(Path(sys.argv[1]), aggregation={"hold_s": 1.0, "deadline_s": 99.0})
federation.answer(1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = (Path(sys.argv[1]) / "updates/updates-e1-000001.msgpack").stat().st_size + 5000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    federation.finish()
except UserError as error:
    federation.die()
    print(error)
    sys.exit(2)
"""


def test_a_disk_that_is_full_in_the_middle_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    # Given a run whose disk takes a few more updates
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Nothing is lost: make room" in done.stdout
    assert done.stdout.count("\n") == 1
    # Then what is recorded is whole, and the run goes on where there is room
    before = replayed(tmp_path)
    assert before.problem is None
    Federation(tmp_path, aggregation={"hold_s": 1.0, "deadline_s": 99.0}).finish()
    assert replayed(tmp_path).versions == 6 > before.versions


def test_a_disk_without_the_room_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    # Given a run that would keep more than any disk has
    federation = Federation(tmp_path, experiment={"versions": 2**50})
    with pytest.raises(UserError, match=r"are free in .* Make room"):
        federation.answer(1)
    assert Ledger(tmp_path).latest_version() == -1
    federation.die()
    # But where something else may end it sooner, nobody can know
    federation = Federation(tmp_path / "b", experiment={"versions": 2**50, "max_minutes": 1.0})
    federation.answer(1)
    assert Ledger(tmp_path / "b").latest_version() == 0


# ---- what a replay finds


def finished(folder: Path) -> Ledger:
    Federation(folder, aggregation={"strategy": "fedbuff", "keep_versions": 3}).finish()
    return Ledger(folder)


@pytest.mark.parametrize(
    ("sabotage", "says"),
    [
        (
            "UPDATE updates SET staleness = staleness + 1 WHERE version = 3",
            "version 3 comes out with other weights",
        ),
        (
            "UPDATE versions SET weights_sha256 = 'f00' WHERE version = 2",
            "version 2 comes out with other weights",
        ),
        (
            "UPDATE updates SET examples = 99 WHERE turn = 4",
            "which is not what was recorded",
        ),
        (
            "UPDATE kept SET start = start + 1 WHERE update_id LIKE 'run:5:%'",
            "is missing or damaged in updates-e1-000001.msgpack",
        ),
    ],
)
def test_a_replay_names_what_is_wrong(tmp_path: Path, sabotage: str, says: str) -> None:
    ledger = finished(tmp_path)
    assert replay(ledger).problem is None
    ledger.query(sabotage)
    assert says in (replay(ledger).problem or "")


def test_a_flipped_bit_of_a_kept_update_is_found(tmp_path: Path) -> None:
    ledger = finished(tmp_path)
    path = tmp_path / UPDATES / "updates-e1-000001.msgpack"
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    assert "is missing or damaged" in (replay(ledger).problem or "")


def test_elsewhere_other_bytes_are_said_and_weights_are_compared(tmp_path: Path) -> None:
    # Given a run made on another machine, whose rounding differed in version 1
    ledger = finished(tmp_path)
    ledger.query(f"UPDATE meta SET value = '{json.dumps(['VAX'])}' WHERE key = 'arithmetic'")
    assert "byte for byte the same, though made on VAX" in str(replay(ledger))
    ledger.query("UPDATE versions SET weights_sha256 = 'f00' WHERE version IN (1, 6)")
    # Then that is no failure as long as the weights that are left agree
    result = replay(ledger)
    assert (result.problem, result.other_bytes, result.apart) == (None, [1, 6], {6: 0.0})
    assert "2 versions have other bytes, the first is 1; of 1 of them" in str(result)
    # But it is where they do not
    ledger.query("UPDATE versions SET file = (SELECT file FROM versions WHERE version = 5)")
    assert "apart from its recorded weights" in (replay(ledger).problem or "")
