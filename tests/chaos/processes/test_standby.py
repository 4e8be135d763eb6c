"""Two aggregators on one host and one run folder: one leads, the other takes over."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from fluffle.commands.summary import STOPPED
from tests.chaos.processes.conductor import HEARTBEAT_S
from tests.integration.processes import (
    PATIENCE_S,
    Start,
    Started,
    verified,
    version,
    wait_for_version,
    wait_until,
)

pytestmark = [pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow]

EXPERIMENT = """
[experiment]
name = "standby"
versions = 1000000
[task]
name = "digits-lr"
clients = 4
[participation]
pause_s = [0.2, 0.4]
[evaluation]
every_updates = 0
"""
#: How soon a new leader has to be at work on a machine that has nothing else to do.
TAKES_OVER_S = 10.0
#: The nightly form has the machine for itself; elsewhere tests do not judge times.
NIGHTLY = "FLUFFLE_CHAOS_FAULTS" in os.environ

Pair = tuple[Started, Started]


def epoch(out: Path) -> int:
    """The epoch that has begun last."""
    with closing(sqlite3.connect(f"file:{out}/ledger.sqlite?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()[0])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def where(rabbitmq: Node, federation: str) -> tuple[str, ...]:
    url = f"{rabbitmq.url}?heartbeat={HEARTBEAT_S}"
    return ("--broker", url, "--federation", federation)


@pytest.fixture
def aggregator(start: Start, tmp_path: Path, out: Path, where: tuple[str, ...]) -> Start:
    """Starts one, the same every time."""
    file = tmp_path / "experiment.toml"
    file.write_text(EXPERIMENT)
    return lambda *more: start("aggregator", file, "--out", out, *where, *more)


@pytest.fixture
def pair(start: Start, aggregator: Start, out: Path, where: tuple[str, ...]) -> Pair:
    """A leader at work with a worker, and a standby that says that it is one."""
    leader = aggregator()
    worker = start("worker", *where, "--slots", 2)
    wait_for_version(out, 2, leader, worker)
    standby = aggregator()
    wait_until(lambda: "another aggregator leads here" in standby.output, leader, standby)
    return leader, standby


def finish(aggregator: Start, start: Start, leading: Started, out: Path) -> None:
    """The run ends well after a version or two more, and the ledger holds."""
    leading.kill(signal.SIGTERM)
    assert leading.wait() == STOPPED, leading.output
    last = aggregator("--set", f"experiment.versions={version(out) + 2}")
    assert last.wait() == 0, last.output
    verified(start, out)


def test_a_standby_takes_over_from_a_leader_that_was_killed(
    start: Start, aggregator: Start, pair: Pair, out: Path
) -> None:
    # Given a leader and a standby
    leader, standby = pair
    before = epoch(out)
    # When the leader is killed
    leader.kill()
    leader.wait()
    killed = time.monotonic()
    at = version(out)
    # Then the standby leads, and makes the next version
    wait_until(lambda: epoch(out) > before, standby)
    led_s = time.monotonic() - killed
    wait_for_version(out, at + 1, standby)
    made_s = time.monotonic() - killed
    print(f"after the SIGKILL: a new leader {led_s:.1f} s, its first version {made_s:.1f} s")
    assert led_s < (TAKES_OVER_S if NIGHTLY else PATIENCE_S)
    finish(aggregator, start, standby, out)


def test_a_stopped_leader_that_wakes_up_changes_nothing_and_leaves(
    start: Start, aggregator: Start, pair: Pair, out: Path
) -> None:
    # Given a leader that stands still until the broker gives it up
    leader, standby = pair
    before = epoch(out)
    leader.kill(signal.SIGSTOP)
    wait_until(lambda: epoch(out) > before, standby)
    wait_for_version(out, version(out) + 2, standby)
    # When it wakes up
    leader.kill(signal.SIGCONT)
    # Then it leaves with one line
    assert leader.wait() == 2, leader.output
    last = leader.output.strip().splitlines()[-1]
    assert re.match(r"fluffle: another aggregator took over the run in .*nothing is lost", last)
    assert "Traceback" not in leader.output
    # And every version since is the other's
    with closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        epochs = [e for (e,) in db.execute("SELECT epoch FROM versions ORDER BY version")]
    assert epochs == sorted(epochs)
    assert set(epochs) == {before, before + 1}
    wait_for_version(out, version(out) + 1, standby)
    assert epoch(out) == before + 1
    finish(aggregator, start, standby, out)


def test_a_standby_waits_for_a_ledger_that_a_stopped_leader_has_locked(
    start: Start, aggregator: Start, pair: Pair, out: Path
) -> None:
    # Given a leader that stopped in the middle of a transaction: so does whoever holds the lock
    leader, standby = pair
    before = epoch(out)
    with closing(sqlite3.connect(out / "ledger.sqlite", isolation_level=None, timeout=60)) as db:
        db.execute("BEGIN IMMEDIATE")
        # When the leader is gone for the broker
        leader.kill()
        leader.wait()
        # Then the standby waits, and says what for
        wait_until(lambda: "has locked the ledger" in standby.output, standby)
        db.execute("ROLLBACK")
    # And goes on as soon as it may
    wait_until(lambda: epoch(out) > before, standby)
    wait_for_version(out, version(out) + 1, standby)
    finish(aggregator, start, standby, out)
