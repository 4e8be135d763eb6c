"""A run in containers through everything that happens to one, to its end."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]


def test_a_run_is_scaled_and_loses_workers_aggregator_and_broker_and_still_ends_well(stack):
    # Given a run with three workers
    assert len(stack.containers("worker")) == 3
    # When there are ten
    before = stack.version()
    stack.compose("up", "--detach", "--no-recreate", "--scale", "worker=10")
    # Then there are ten mailboxes, and all ten take part
    stack.wait_for("ten mailboxes", lambda: len(stack.mailboxes()) == 10)
    stack.wait_for("ten at work", lambda: len(stack.workers_since(before)) == 10)

    # When two of them are killed, the run goes on without them
    dead = stack.containers("worker")[:2]
    subprocess.run(["docker", "kill", *dead], check=True, capture_output=True)
    stack.wait_for("eight mailboxes", lambda: len(stack.mailboxes()) == 8)
    assert len(stack.containers("worker")) == 8
    stack.wait_for_versions(10)

    # When the aggregator restarts, it resumes
    stack.compose("restart", "aggregator")
    stack.wait_for_versions(10)
    assert stack.query("SELECT MIN(epoch), MAX(epoch) FROM versions") == [(1, 2)]

    # When the broker restarts, all of them find it again
    stack.compose("restart", "rabbitmq")
    restarted = stack.version()
    stack.wait_for("eight mailboxes", lambda: len(stack.mailboxes()) == 8)
    stack.wait_for("eight at work", lambda: len(stack.workers_since(restarted)) == 8)

    # When the dead are back and the run may end soon, everybody leaves with code 0
    stack.compose("up", "--detach", "--no-recreate", "--scale", "worker=10")
    stack.wait_for("ten mailboxes", lambda: len(stack.mailboxes()) == 10)
    last = stack.version() + 20
    stack.configure(FLUFFLE_EXPERIMENT__VERSIONS=last)
    stack.compose("up", "--no-build", "--scale", "worker=10", "--exit-code-from", "aggregator")
    codes = stack.exit_codes()
    assert len(codes) == 15
    assert set(codes.values()) == {0}

    # And the run folder is whole, and belongs to who asked for it
    assert stack.version() == last
    verify = [sys.executable, "-m", "fluffle", "verify", str(stack.folder)]
    checked = subprocess.run(verify, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "(finished)" in checked.stdout
    owner = (stack.folder / "ledger.sqlite").stat()
    assert (owner.st_uid, owner.st_gid) == (stack.uid, stack.gid)

    # And nothing is left when it is taken down
    stack.compose("down", "--volumes")
    assert stack.left() == ""
