"""A disk that fails under a real aggregator, call by call: one line, and a restart goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from tests.chaos.power.test_power_loss import EXPERIMENT
from tests.integration.processes import Start, Started, verified, wait_until

pytestmark = [
    *(pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow),
    pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here"),
]


#: What fails: in which files of the run folder ("": in the folder itself), which calls from which
#: one on, and how.
FAILURES = {
    "the ledger's log is written": ("ledger.sqlite-wal", "pwrite64", 70, "ENOSPC"),
    "a commit is synced": ("ledger.sqlite-wal", "fdatasync", 6, "EIO"),
    "an update is kept": ("updates/updates-e1-000001.msgpack", "write", 3, "ENOSPC"),
    "kept updates are synced": ("updates/updates-e1-000001.msgpack", "fsync", 2, "EIO"),
    "the folder of weights is synced": ("weights", "fsync", 3, "EIO"),
}


@pytest.mark.parametrize(("file", "call", "first", "error"), FAILURES.values(), ids=list(FAILURES))
def test_a_disk_that_fails_stops_the_aggregator_with_a_line_and_costs_nothing(
    start: Start, rabbitmq: Node, federation: str, tmp_path: Path,
    file: str, call: str, first: int, error: str,
) -> None:  # fmt: skip
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    where = ["--broker", rabbitmq.url, "--federation", federation]
    lead = [
        *("aggregator", str(tmp_path / "experiment.toml"), *where),
        *("--out", str(tmp_path / "out"), "--json"),
    ]
    # Given an aggregator whose disk fails at a certain call, and at all like it that follow
    inject = f"inject={call}:error={error}:when={first}+"
    strace = ("strace", "-f", "-qq", "-o", str(tmp_path / "trace"))
    only = ("-P", str(tmp_path / "out" / file), "-e", f"trace={call}", "-e", inject)
    failing = Started(lead, tmp_path / "failing.log", under=(*strace, *only))
    worker = start("worker", *where, "--slots", 2)
    try:
        code = failing.wait()
    finally:
        failing.kill()
    # Then it ends with a line that says what to do
    assert "INJECTED" in (tmp_path / "trace").read_text(), failing.output
    assert code == 2, failing.output
    last = failing.output.strip().splitlines()[-1]
    assert f"cannot write to {tmp_path / 'out'}" in last
    assert "run the same command with the same --out to resume" in last
    assert "Traceback" not in failing.output
    # And what it left is in order, and the same command on a good disk ends the run
    verified(start, tmp_path / "out")
    aggregator = start(*lead)
    assert aggregator.wait() == 0, aggregator.output
    assert worker.wait() == 0, worker.output
    assert aggregator.summary()["updates_counted"] == 24
    verified(start, tmp_path / "out", "--replay")


def test_a_worker_that_stalls_in_every_system_call_holds_nobody_up(
    start: Start, rabbitmq: Node, federation: str, tmp_path: Path
) -> None:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    where = ["--broker", rabbitmq.url, "--federation", federation]
    # Given a worker whose calls on the network all take a twentieth of a second longer, and another
    slow = ("strace", "--seccomp-bpf", "-f", "-qq", "-o", str(tmp_path / "trace"))
    calls = ("-e", "trace=sendto,recvfrom", "-e", "inject=sendto,recvfrom:delay_enter=50000")
    (tmp_path / "trace").touch()
    stalled = Started(
        ["worker", *where, "--name", "stalled"], tmp_path / "stalled.log", under=(*slow, *calls)
    )
    try:
        wait_until(lambda: "sendto" in (tmp_path / "trace").read_text(), stalled)
        worker = start("worker", *where, "--name", "quick")
        lead = ("aggregator", tmp_path / "experiment.toml", *where)
        aggregator = start(*lead, "--out", tmp_path / "out")
        # Then the run ends, and both leave by themselves
        assert aggregator.wait() == 0, aggregator.output
        assert worker.wait() == 0, worker.output
        assert stalled.wait() == 0, stalled.output
        assert "DELAYED" in (tmp_path / "trace").read_text()
        verified(start, tmp_path / "out", "--replay")
    finally:
        stalled.kill()
