"""``fluffle doctor``: it tells what is there, how to get what is not, and never fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fluffle.broker.admin.node import Node
from fluffle.doctor.machine import find_backend
from tests.urls import user_of

CHECKS = {
    "python",
    "backend",
    "gpu",
    "memory",
    "disk",
    "data",
    "rabbitmq",
    "broker",
    "settings",
    "docker",
}
TROUBLES = {"cannot connect", "out of memory", "unstable results", "slow aggregation"}


def doctor(*arguments: object, **environment: str) -> str:
    """What it prints; it has to end with code 0 whatever it finds."""
    inherited = {k: v for k, v in os.environ.items() if k != "FLUFFLE_BROKER"}
    done = subprocess.run(
        [sys.executable, "-m", "fluffle", "doctor", *map(str, arguments)],
        env={**inherited, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def examined(*arguments: object, **environment: str) -> dict[str, Any]:
    return dict(json.loads(doctor("--json", *arguments, **environment)))


def command(folder: Path, name: str, script: str) -> str:
    """A PATH that has this command in front."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_it_looks_at_everything_and_answers_the_four_troubles_in_text_and_json(
    tmp_path: Path,
) -> None:
    text, found = doctor("--out", tmp_path), examined("--out", tmp_path)
    assert set(found["checks"]) == CHECKS
    assert set(found["troubles"]) == TROUBLES
    for name in CHECKS | TROUBLES:
        assert name in text
    # Then what it says of this machine is so
    checks = found["checks"]
    assert checks["python"]["facts"]["version"] == ".".join(map(str, sys.version_info[:3]))
    memory = checks["memory"]["facts"]
    assert memory["worker_processes"] <= memory["free_gb"] / 0.7 <= memory["total_gb"] / 0.7
    assert f"{memory['worker_processes']} worker processes" in found["troubles"]["out of memory"]
    assert checks["disk"]["facts"]["sync_ms"] > 0
    lacking = [name for name, check in checks.items() if check["status"] == "lack"]
    assert found["lacking"] == lacking
    assert all(checks[name]["get"] for name in lacking)


def test_a_machine_without_docker_data_or_a_writable_folder_is_told_how_to_get_them(
    tmp_path: Path,
) -> None:
    found = examined("--out", "/proc/runs", PATH=str(tmp_path), FLUFFLE_DATA=str(tmp_path / "none"))
    assert set(found["lacking"]) >= {"docker", "data", "disk"}
    assert found["checks"]["data"]["get"].startswith("fluffle data fetch mnist")
    assert "docs.docker.com" in found["checks"]["docker"]["get"]
    assert "--out" in found["checks"]["disk"]["get"]
    assert found["troubles"]["slow aggregation"].startswith("nothing can be written")


def test_docker_without_an_engine_that_answers(tmp_path: Path) -> None:
    found = examined(PATH=command(tmp_path, "docker", "echo cannot connect >&2; exit 1"))
    assert found["checks"]["docker"]["found"] == "installed, but no engine answers"
    assert "start it" in found["checks"]["docker"]["get"]


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_gpu_that_tensorflow_does_not_see(tmp_path: Path) -> None:
    path = command(tmp_path, "nvidia-smi", "echo Tesla T4, 15360 MiB")
    found = examined(PATH=path, CUDA_VISIBLE_DEVICES="-1")["checks"]["gpu"]
    assert found["status"] == "lack"
    assert found["facts"] == {"cards": ["Tesla T4, 15360 MiB"], "usable": 0}
    assert "fluffle[gpu]" in found["get"]


def test_a_machine_without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    found = find_backend()
    assert found.status == "lack"
    assert found.found.startswith("tensorflow not installed")
    assert "fluffle[cpu]" in found.get


def test_tensorflow_is_not_imported_where_there_is_no_gpu(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from fluffle.doctor import examine, troubles;"
        "troubles(examine('', 'fluffle', pathlib.Path('.')));"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
    ("url", "says", "get"),
    [
        ("amqp://me:s3cret@127.0.0.1:9/", "no RabbitMQ at 127.0.0.1:9", "is port 5672"),
        ("127.0.0.1:5672", "the broker's URL is not like amqp://", "quotes"),
    ],
)
def test_a_broker_that_cannot_be_reached(url: str, says: str, get: str) -> None:
    found = examined("--broker", url)
    broker = found["checks"]["broker"]
    assert broker["status"] == "lack"
    assert says in broker["found"]
    assert get in broker["get"]
    assert "cannot be used" in found["troubles"]["cannot connect"]
    assert "s3cret" not in json.dumps(found)


@pytest.mark.rabbitmq
def test_a_broker_that_can(rabbitmq: Node, federation: str) -> None:
    found = examined("--broker", rabbitmq.url, "--federation", federation)
    broker = found["checks"]["broker"]
    assert broker["status"] == "ok"
    assert (
        f"RabbitMQ {broker['facts']['version']} at 127.0.0.1:{rabbitmq.tcp_port}" in broker["found"]
    )
    assert f"user {user_of(rabbitmq.url)} may train" in broker["found"]
    assert f"nobody has led {federation} here yet" in broker["found"]
    assert found["troubles"]["cannot connect"].startswith("the broker answers")
