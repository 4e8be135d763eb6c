"""Which containers the files ask for; none is started."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.compose.stack import ROOT

pytestmark = [pytest.mark.compose, pytest.mark.usefixtures("engine")]


def services(*files: str, folder: Path | None = None, profile: str = "") -> dict:
    """What ``docker compose`` makes of these files, with the .env in ``folder`` or with none."""
    named = [argument for file in files for argument in ("--file", file)]
    where = ["--project-directory", str(folder)] if folder else ["--env-file", "/dev/null"]
    where += ["--profile", profile] if profile else []
    command = ["docker", "compose", *named, *where, "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["services"]


def test_all_roles_share_one_image_and_ten_workers_fit_a_laptop_of_16_gb():
    ours = services("compose.yaml")
    roles = [ours[name] for name in ("aggregator", "worker", "evaluator")]
    assert {role["image"] for role in roles} == {"fluffle:cpu"}
    limits = {name: int(one["mem_limit"]) for name, one in ours.items()}
    assert "--slots 1 " in " ".join(ours["worker"]["command"])
    assert sum(limits.values()) + 9 * limits["worker"] < 16 * 1024**3


def test_workers_stay_as_many_as_a_persons_settings_say(tmp_path):
    # Given a .env, since `up` without --scale would go back to one
    assert services("compose.yaml")["worker"]["scale"] == 1
    (tmp_path / ".env").write_text("WORKERS=10\n")
    assert services(str(ROOT / "compose.yaml"), folder=tmp_path)["worker"]["scale"] == 10


def test_verbs_that_load_tensorflow_have_the_memory_for_it_and_no_secret(tmp_path):
    (tmp_path / ".env").write_text("AGGREGATOR_PASSWORD=secret\n")
    asked = services(str(ROOT / "compose.yaml"), folder=tmp_path, profile="tools")
    assert "tools" not in services("compose.yaml")  # `up` starts none
    assert int(asked["tools"]["mem_limit"]) >= 2 * 1024**3
    assert "secret" not in json.dumps(asked["tools"])
    targets = {volume["target"] for volume in asked["tools"]["volumes"]}
    assert targets == {"/data", "/fluffle/runs"}


def test_what_is_open_is_open_to_this_machine_alone():
    published = [port for one in services("compose.yaml").values() for port in one.get("ports", [])]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    assert {port["target"] for port in published} == {15672, 8080}


def test_with_gpus_workers_and_evaluator_share_the_cards():
    ours = services("compose.yaml", "compose.gpu.yaml")
    for name in ("worker", "evaluator"):
        (device,) = ours[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"capabilities": ["gpu"], "driver": "nvidia", "count": -1}
    roles = ("passwords", "aggregator", "worker", "evaluator")
    assert {ours[name]["image"] for name in roles} == {"fluffle:gpu"}
    assert {ours[n]["build"]["args"]["TENSORFLOW"] for n in ("worker", "evaluator")} == {"gpu"}


def test_images_and_logs_are_what_a_persons_settings_say(tmp_path):
    # Given a .env with exact images, and a log for machines
    python = f"python:3.11.14-slim-bookworm@sha256:{'0' * 64}"
    rabbitmq = f"4.1.4-management@sha256:{'1' * 64}"
    (tmp_path / ".env").write_text(
        f"PYTHON_IMAGE={python}\nRABBITMQ_TAG={rabbitmq}\n"
        "FLUFFLE_LOG_LEVEL=debug\nFLUFFLE_LOG_FORMAT=json\n"
    )
    ours = services(str(ROOT / "compose.yaml"), folder=tmp_path)
    # Then the image is built on the one, the broker is the other, and all services log so
    assert ours["rabbitmq"]["image"] == f"rabbitmq:{rabbitmq}"
    for name in ("aggregator", "worker", "evaluator"):
        assert ours[name]["build"]["args"]["PYTHON_IMAGE"] == python
        assert ours[name]["environment"]["FLUFFLE_LOG_LEVEL"] == "debug"
        assert ours[name]["environment"]["FLUFFLE_LOG_FORMAT"] == "json"


def test_the_aggregator_reads_a_persons_settings_but_not_the_passwords_of_others(tmp_path):
    # Given a .env with everything in it
    passwords = "".join(f"{who}_PASSWORD=secret\n" for who in ("ADMIN", "EVALUATOR", "WORKER"))
    (tmp_path / ".env").write_text(f"{passwords}FLUFFLE_AGGREGATION__QUORUM=5\n")
    # Then the aggregator has what is its own
    aggregator = services(str(ROOT / "compose.yaml"), folder=tmp_path)["aggregator"]
    assert aggregator["environment"]["FLUFFLE_AGGREGATION__QUORUM"] == "5"
    assert "secret" not in json.dumps(aggregator)
