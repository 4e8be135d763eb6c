"""Which containers the files ask for; none is started."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.compose.stack import ROOT

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1200)]


def services(*files: str, folder: Path | None = None) -> dict:
    """What ``docker compose`` makes of these files, with the .env in ``folder`` or with none."""
    named = [argument for file in files for argument in ("--file", file)]
    where = ["--project-directory", str(folder)] if folder else ["--env-file", "/dev/null"]
    command = ["docker", "compose", *named, *where, "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["services"]


@pytest.fixture(autouse=True)
def _engine(stack) -> None:
    """Skipped, or failed, where the others are."""


def test_all_roles_share_one_image_and_ten_workers_fit_a_laptop_of_16_gb():
    ours = services("compose.yaml")
    roles = [ours[name] for name in ("aggregator", "worker", "evaluator")]
    assert {role["image"] for role in roles} == {"fluffle:cpu"}
    limits = {name: int(one["mem_limit"]) for name, one in ours.items()}
    assert "--slots 1 " in " ".join(ours["worker"]["command"])
    assert sum(limits.values()) + 9 * limits["worker"] < 16 * 1024**3


def test_what_is_open_is_open_to_this_machine_alone():
    published = [port for one in services("compose.yaml").values() for port in one.get("ports", [])]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    assert {port["target"] for port in published} == {15672}


def test_with_gpus_workers_and_evaluator_share_the_cards():
    ours = services("compose.yaml", "compose.gpu.yaml")
    for name in ("worker", "evaluator"):
        (device,) = ours[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"capabilities": ["gpu"], "driver": "nvidia", "count": -1}
    assert {ours[n]["image"] for n in ("aggregator", "worker", "evaluator")} == {"fluffle:gpu"}
    assert {ours[n]["build"]["args"]["TENSORFLOW"] for n in ("worker", "evaluator")} == {"gpu"}


def test_the_aggregator_reads_a_persons_settings_but_not_the_passwords_of_others(tmp_path):
    # Given a .env with everything in it
    passwords = "".join(f"{who}_PASSWORD=secret\n" for who in ("ADMIN", "EVALUATOR", "WORKER"))
    (tmp_path / ".env").write_text(f"{passwords}FLUFFLE_AGGREGATION__QUORUM=5\n")
    # Then the aggregator has what is its own
    aggregator = services(str(ROOT / "compose.yaml"), folder=tmp_path)["aggregator"]
    assert aggregator["environment"]["FLUFFLE_AGGREGATION__QUORUM"] == "5"
    assert "secret" not in json.dumps(aggregator)
