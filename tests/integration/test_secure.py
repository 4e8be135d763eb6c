"""Secure aggregation between real processes, each a user of least rights, killed in the middle."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.broker.admin.node import Node
from fluffle.commands.app import app
from fluffle.helper.ledger import HelperLedger
from tests.integration.processes import EXPERIMENT, Start, verified, wait_for_version

pytestmark = [pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow]

SECURE = """
[admission]
norm_factor = 0
[secure_aggregation]
"""


@pytest.fixture
def users(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A server, and the URL of each user that the documented command makes."""
    passwords = tmp_path / "passwords"
    with Node() as node:
        here = node._environment()
        here["PATH"] = f"{node._scripts}:{here['PATH']}"
        made = CliRunner().invoke(app, ["broker", "users", str(passwords), "--helper"])
        assert made.exit_code == 0, made.output
        subprocess.run(["sh", "-e"], input=made.output, env=here, check=True, text=True)
        yield {
            path.name: f"amqp://{path.name}:{path.read_text().strip()}"
            f"@127.0.0.1:{node.tcp_port}/%2F"
            for path in passwords.iterdir()
        }


def test_no_id_is_unmasked_twice_and_no_buffer_lost_when_helper_and_aggregator_are_killed(
    start: Start, users: dict[str, str], tmp_path: Path
) -> None:
    # Given a helper whose first start says its key
    file, out, own = tmp_path / "secure.toml", tmp_path / "out", tmp_path / "helper"
    file.write_text(EXPERIMENT + SECURE)
    helps = ("helper", file, "--broker", users["helper"], "--out", own)
    first = start(*helps)
    assert first.wait() == 2
    key = first.output.split('helper_key = "')[1].split('"')[0]
    leads = ("aggregator", file, "--broker", users["aggregator"], "--out", out, "--json")
    without = start(*leads)
    assert without.wait() == 2
    assert "needs secure_aggregation.helper_key" in without.output
    file.write_text(f'{EXPERIMENT}{SECURE}helper_key = "{key}"\n')
    aggregator, helper = start(*leads), start(*helps)
    worker = start("worker", "--broker", users["worker"], "--slots", 2, "--name", "worker-1")
    start("evaluator", "--broker", users["evaluator"], "--name", "evaluator-1")

    # When both are killed again and again, one by one and together
    for at, killed in ((4, "helper"), (8, "aggregator"), (12, "both"), (16, "helper")):
        wait_for_version(out, at, aggregator, worker, helper)
        if killed != "aggregator":
            helper.kill()
            helper.wait()
        if killed != "helper":
            aggregator.kill()
            aggregator.wait()
            aggregator = start(*leads)
        if killed != "aggregator":
            helper = start(*helps)

    # Then the run finishes, everybody is counted once, and was unmasked once, in one set a version
    assert aggregator.wait() == 0, aggregator.output
    assert worker.wait() == 0, worker.output
    summary = aggregator.summary()
    assert (summary["versions"], summary["updates_counted"]) == (40, 120)
    assert summary["accuracy"] > 0.8
    verified(start, out)
    with closing(LedgerReader(out)) as ledger, closing(HelperLedger(own)) as remembered:
        counted = ledger.query("SELECT update_id, version FROM updates WHERE version > 0")
        sets = remembered.unmasked()
        assert set(sets) == {update_id for update_id, _ in counted}
        assert len({(version, sets[update_id]) for update_id, version in counted}) == 40
    helper.kill(15)
    assert helper.wait() == 0, helper.output
