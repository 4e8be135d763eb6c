"""A site from its invitation to the end of a run, under its policy, on a real broker."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from fluffle.broker.admin.node import Node
from fluffle.worker.site import audit
from tests.fluffle.test_site import TASK, says
from tests.integration.processes import Start, verified

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow, pytest.mark.timeout(400)]

EXPERIMENT = """
[experiment]
name = "invited"
versions = 4
[task]
name = "means.py:Means"
clients = 0
[participation]
residents = ["lab-1"]
[aggregation]
quorum = 1
[evaluation]
every_updates = 0
[[update]]
kind = "clip"
norm = 1.0
"""


def test_a_site_joins_by_its_invitation_and_its_log_has_what_left(
    start: Start, tmp_path: Path
) -> None:
    # Given a broker, its users, and a task with data
    file, out, passwords = (tmp_path / name for name in ("run.toml", "out", "passwords"))
    file.write_text(EXPERIMENT)
    (tmp_path / "means.py").write_text(TASK)
    np.save(tmp_path / "rows.npy", np.arange(30.0).reshape(10, 3))
    with Node(management=True) as node:
        who = urlsplit(node.url).netloc.rpartition("@")[0]
        api = ["--api", node.management_url.replace("://", f"://{who}@")]
        where = f"127.0.0.1:{node.tcp_port}/%2F"
        says("broker", "users", passwords, "--no-pool", *api)
        # When a site is invited and makes its folder, with a policy of its own
        invitation, folder = tmp_path / "lab-1.json", tmp_path / "site"
        says(
            *("site", "invite", "lab-1", passwords, "--broker", f"amqp://{where}"),
            *("--out", invitation, *api),
        )
        says("site", "init", invitation, folder)
        settings = (folder / "site.toml").read_text()
        settings = settings.replace('task = ""', f'task = "{tmp_path / "means.py"}:Means"')
        settings = settings.replace('data = ""', f'data = "{tmp_path}"')
        (folder / "site.toml").write_text(settings)
        (folder / "policy.toml").write_text(
            "[steps]\nclip_norm = 1.0\n[traffic]\nupdates_an_hour = 1000\n"
        )
        # And joins
        lead = start(
            *("aggregator", file, "--broker", f"amqp://aggregator@{where}", "--out", out),
            *("--password-file", passwords / "aggregator"),
        )
        evaluator = start(
            *("evaluator", "--broker", f"amqp://evaluator@{where}", "--name", "evaluator-1"),
            *("--password-file", passwords / "evaluator"),
            *("--task", f"{tmp_path / 'means.py'}:Means", "--data", tmp_path),
        )
        site = start("site", "join", folder)
        # Then the run ends well with it
        assert lead.wait() == 0, (lead.output, site.output)
        assert site.wait() == 0, site.output
        assert evaluator.wait() == 0, evaluator.output
    verified(start, out)
    # And what the ledger has of it is what its log says has left
    shown = json.loads(says("status", out, "--json"))["run"]["sites"]
    (one,) = shown
    sent = [e for e in audit.read(folder / "audit.jsonl") if e["what"] == "sending"]
    assert one["counted"] == 4
    assert len(sent) >= 4
    assert not [e for e in audit.read(folder / "audit.jsonl") if e["what"] == "withheld"]
    says("audit", "verify", folder / "audit.jsonl")
