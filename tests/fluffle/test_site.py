"""``fluffle site`` and ``fluffle audit``: from an invitation to a log that can be checked."""

from __future__ import annotations

import csv
import hashlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fluffle.commands.app import app
from fluffle.schemas import UserError
from fluffle.site_folder import Invitation, SiteFolder
from fluffle.worker.site.audit import AuditLog
from fluffle.worker.tasks import registry as tasks

TASK = """
import numpy as np

from fluffle import ArrayTask


class Means(ArrayTask):
    def weights(self):
        return {"mean": np.zeros(3, np.float32)}

    def train(self, weights, client, rng, state):
        rows = np.load(self.data_dir / "rows.npy")
        return {"mean": rows.mean(axis=0).astype(np.float32)}, len(rows), {"loss": 0.5}, None

    def evaluate(self, weights):
        return {"loss": 0.0}
"""


def says(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A site that was invited, has a task and data, and a policy as it came."""
    says(
        *("site", "invite", "lab-1", tmp_path / "passwords", "--out", tmp_path / "lab-1.json"),
        *("--broker", "amqps://broker.example.org/%2F"),
    )
    folder = tmp_path / "site"
    says("site", "init", tmp_path / "lab-1.json", folder)
    data = tmp_path / "data"
    data.mkdir()
    import numpy as np

    np.save(data / "rows.npy", np.arange(30.0).reshape(10, 3))
    (tmp_path / "means.py").write_text(TASK)
    settings = (folder / "site.toml").read_text()
    settings = settings.replace('task = ""', f'task = "{tmp_path / "means.py"}:Means"')
    (folder / "site.toml").write_text(settings.replace('data = ""', f'data = "{data}"'))
    yield folder
    tasks.use(None, None)


def test_an_invitation_has_all_that_a_site_needs_and_is_for_it_alone(tmp_path: Path) -> None:
    # Given a coordinator with an authority and a policy to begin with
    ca, policy = tmp_path / "ca.pem", tmp_path / "policy.toml"
    ca.write_text("-----BEGIN CERTIFICATE-----\n")
    policy.write_text("[traffic]\nupdates_an_hour = 5\n")
    out = tmp_path / "lab-1.json"
    # When it invites a site
    printed = says(
        *("site", "invite", "lab-1", tmp_path / "passwords", "--out", out, "--ca", ca),
        *("--policy", policy, "--broker", "amqps://broker.example.org:5671/%2F"),
    )
    # Then the lines for rabbitmqctl are of that user alone, and hold no password
    found = Invitation.read(out)
    users = {line.split()[2] for line in printed.splitlines() if "add_user" in line}
    assert users == {"lab-1"}
    assert found.password not in printed
    assert found.password == (tmp_path / "passwords" / "lab-1").read_text().strip()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    # And the site's folder is made of it
    says("site", "init", out, tmp_path / "site")
    site = SiteFolder.read(tmp_path / "site")
    assert (site.name, site.broker) == ("lab-1", "amqps://lab-1@broker.example.org:5671/%2F")
    assert "password_file=" in site.url
    assert found.password not in site.url
    assert (tmp_path / "site" / "policy.toml").read_text() == policy.read_text()
    assert stat.S_IMODE((tmp_path / "site" / "password").stat().st_mode) == 0o600
    # And neither is written over
    with pytest.raises(UserError, match="is not empty"):
        CliRunner().invoke(
            app, ["site", "init", str(out), str(tmp_path / "site")], catch_exceptions=False
        )


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(folder: Path) -> None:
    # When a site that allows everything looks
    shown = says("site", "check", folder)
    # Then it sees the tensors, the numbers, and the hash to allow
    assert "float32 [3]" in shown
    assert "examples 10" in shown
    digest = hashlib.sha256((folder.parent / "means.py").read_bytes()).hexdigest()
    assert digest in shown
    assert not (folder / "audit.jsonl").exists()
    # When its policy lists another task
    (folder / "policy.toml").write_text(f'[tasks]\nsha256 = ["{"0" * 64}"]\n')
    with pytest.raises(UserError, match="does not list the task file"):
        CliRunner().invoke(app, ["site", "check", str(folder)], catch_exceptions=False)
    with pytest.raises(UserError, match="does not list the task file"):
        CliRunner().invoke(app, ["site", "join", str(folder)], catch_exceptions=False)
    # Or lets no tensor leave
    (folder / "policy.toml").write_text('[tensors]\nmay_leave = ["trainable/other"]\n')
    with pytest.raises(UserError, match="nothing would be sent: the policy does not let"):
        CliRunner().invoke(app, ["site", "check", str(folder)], catch_exceptions=False)


def test_who_has_not_joined_has_left(folder: Path) -> None:
    assert "had not joined" in says("site", "leave", folder)


def test_a_log_is_checked_and_written_as_a_table(tmp_path: Path) -> None:
    # Given a log with something in it
    log = AuditLog(tmp_path / "audit.jsonl")
    log.add("sending", type="client-update", bytes=5, message_id="u")
    # Then it can be checked, also against what was seen before
    head = says("audit", "verify", log.path).split()[-1]
    says("audit", "verify", log.path, "--head", head)
    # And read by others
    says("audit", "export", log.path, "--out", tmp_path / "log.csv")
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == ["begin", "sending"]
    assert rows[1]["bytes"] == "5"
    # When it is edited
    lines = log.path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "bytes": 6})
    log.path.write_text("\n".join(lines) + "\n")
    for command in ("verify", "export"):
        with pytest.raises(UserError, match="line 2 is not as it was written"):
            CliRunner().invoke(app, ["audit", command, str(log.path)], catch_exceptions=False)


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"kind": "fluffle-invitation"}'])
def test_what_is_no_invitation_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UserError, match="is no invitation"):
        Invitation.read(tmp_path / "file")
