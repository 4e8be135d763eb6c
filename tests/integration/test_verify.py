"""``fluffle verify`` on runs on RabbitMQ: killed in the middle, live, and gone back in time."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from tests.integration.processes import Start, Started, verified, version, wait_for_version

pytestmark = [pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow]

#: A checkpoint after nearly every update, so that kills hit them.
KEEPING = (
    *("--set", "aggregation.keep_updates=true", "--set", "aggregation.hold_s=0.01"),
    *("--set", "aggregation.quorum=8", "--set", "experiment.versions=40"),
    *("--set", "evaluation.every_updates=0"),
)


def _refused(check: Started, code: int) -> str:
    assert check.wait() == code, check.output
    return check.output


def test_a_run_killed_in_the_middle_of_its_checkpoints_replays_byte_for_byte(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    # Given a run that keeps its updates
    out = tmp_path / "out"
    where = ("--broker", rabbitmq.url, "--federation", federation)
    lead = ("aggregator", experiment, *where, "--out", out, *KEEPING, "--json")
    aggregator = start(*lead)
    worker = start("worker", *where, "--slots", 2)
    wait_for_version(out, 1, aggregator, worker)
    # When its aggregator is killed again and again, whatever it is at
    chance = random.Random(5)
    for _ in range(4):
        wait_for_version(out, version(out) + 1, aggregator, worker)
        time.sleep(chance.uniform(0.0, 0.5))
        aggregator.kill()
        aggregator.wait()
        aggregator = start(*lead)
    # Then at any moment nothing is wrong with what is recorded and published
    wait_for_version(out, version(out) + 1, aggregator, worker)
    said = verified(start, out, *where)
    assert "an aggregator leads there" in said
    # And at the end every version comes out again, byte for byte
    assert aggregator.wait() == 0, aggregator.output
    assert worker.wait() == 0, worker.output
    said = verified(start, out, "--replay", *where)
    assert "replayed 40 versions from 321 kept updates" in said
    assert "byte for byte the same" in said
    assert "the newest model there is version 40 of epoch 5" in said
    assert "messages lie in updates.rejected, 0 were rejected by this run" in said
    assert aggregator.summary()["kept_updates"] == 321
    assert aggregator.output.count("keeping updates takes up to") == 1


def test_a_ledger_that_went_back_in_time_is_found_by_what_was_published(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    # Given a run whose folder was copied while it stood still
    out, copy = tmp_path / "out", tmp_path / "copy"
    where = ("--broker", rabbitmq.url, "--federation", federation)
    lead = ("aggregator", experiment, *where, "--out", out, "--json")
    aggregator = start(*lead, "--set", "experiment.versions=8")
    worker = start("worker", *where)
    wait_for_version(out, 2, aggregator, worker)
    aggregator.kill(signal.SIGTERM)
    aggregator.wait()
    shutil.copytree(out, copy)
    # When it has gone on to its end
    assert (again := start(*lead, "--set", "experiment.versions=8")).wait() == 0, again.output
    verified(start, out, *where)
    # Then the copy is in order by itself, and not what the broker knows
    verified(start, copy)
    said = _refused(start("verify", copy, *where), 1)
    assert "wrong: version 8 was published in epoch 2, but the ledger knows only 1" in said
    # And what needs kept updates, or a broker, says so in one line
    assert "has kept no updates to replay" in _refused(start("verify", out, "--replay"), 2)
    nowhere = "amqp://guest:guest@127.0.0.1:1"
    assert "no RabbitMQ at 127.0.0.1:1" in _refused(start("verify", out, "--broker", nowhere), 2)
