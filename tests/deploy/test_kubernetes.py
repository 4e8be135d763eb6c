"""The manifests of deploy/kubernetes: built by kustomize, held to schemas and to a policy.

Nothing is started: there is no cluster here. Kinds that operators define have no schema offline.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fluffle.broker.topology import Topology
from fluffle.commands.app import app
from fluffle.experiment_file import load_experiment
from fluffle.schemas import Experiment
from fluffle.worker.tasks.registry import TASKS
from tests.docs import ROOT

kubernetes_validate = pytest.importorskip("kubernetes_validate")
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl builds them")

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
#: The oldest version that is promised, and the newest that the schemas know.
VERSIONS = ("1.29", "1.34")
#: Kinds of operators.
CUSTOM = ("rabbitmq.com/", "keda.sh/", "monitoring.coreos.com/")


def build(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def with_components(folder: Path, overlay: str) -> list[dict[str, Any]]:
    """An overlay with everything that there is on top of it, as the page shows."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    mine = folder / "kubernetes" / "mine"
    mine.mkdir()
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "fluffle",
        "resources": [f"../overlays/{overlay}"],
        "components": [f"../components/{name}" for name in COMPONENTS],
    }
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(text))
    return build(mine)


@pytest.fixture(scope="module", params=[*OVERLAYS, "all of them"])
def manifests(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    if request.param in OVERLAYS:
        return build(KUBERNETES / "overlays" / request.param)
    return with_components(tmp_path_factory.mktemp("all"), "single-node")


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in manifests
        if one["kind"] in ("Deployment", "StatefulSet")
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_they_are_what_the_api_takes(manifests: list[dict[str, Any]], version: str) -> None:
    checked = 0
    for one in manifests:
        if not one["apiVersion"].startswith(CUSTOM):
            kubernetes_validate.validate(one, version, strict=True)
            checked += 1
    assert checked >= 9


def test_a_slip_in_them_would_be_found(manifests: list[dict[str, Any]]) -> None:
    (worker,) = [one for one in manifests if one["metadata"]["name"] == "worker" and
                 one["kind"] == "Deployment"]  # fmt: skip
    wrong = {**worker, "spec": {**worker["spec"], "replica": 3}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_nobody_is_root_and_nothing_can_be_written_but_volumes(
    manifests: list[dict[str, Any]],
) -> None:
    for name, pod in pods(manifests).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            about = container["securityContext"]
            assert about["readOnlyRootFilesystem"] is True, name
            assert about["allowPrivilegeEscalation"] is False, name
            assert about["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            assert "cpu" not in container["resources"]["limits"], name  # throttled, not faster
            for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                assert probe in container, (name, probe)
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            claims = [
                claim["metadata"]["name"]
                for one in manifests
                if one["metadata"]["name"] == name
                for claim in one["spec"].get("volumeClaimTemplates", [])
            ]
            assert mounted == {volume["name"] for volume in pod["volumes"]} | set(claims), name


def test_what_they_start_is_what_our_command_takes(manifests: list[dict[str, Any]]) -> None:
    commands = typer.main.get_command(app)
    for name in ("aggregator", "worker", "evaluator"):
        (container,) = pods(manifests)[name]["containers"]
        told = {entry["name"]: entry["value"] for entry in container["env"]}
        words = [*container["args"][1:], "--broker", told["FLUFFLE_BROKER"]]
        command = commands.commands[container["args"][0]]  # type: ignore[attr-defined]
        command.make_context(name, words)
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        # Everybody is a user of its own, whose password is in a secret of its own
        assert f"//{name}@" in told["FLUFFLE_BROKER"]
        secrets = [v["secret"]["secretName"] for v in pods(manifests)[name]["volumes"]
                   if "secret" in v]  # fmt: skip
        assert f"fluffle-{name}" in secrets
    experiment = load_experiment(KUBERNETES / "base" / "experiment.toml", [], {})
    assert isinstance(experiment, Experiment)
    assert experiment.task.name in TASKS


def test_who_is_told_to_leave_has_the_time_of_a_turn(manifests: list[dict[str, Any]]) -> None:
    assert pods(manifests)["worker"]["terminationGracePeriodSeconds"] >= 3600


def test_workers_are_scaled_by_all_turns_that_are_not_done(tmp_path: Path) -> None:
    made = with_components(tmp_path, "single-node")
    (scaler,) = [one for one in made if one["kind"] == "ScaledObject"]
    (trigger,) = scaler["spec"]["triggers"]
    about = trigger["metadata"]
    # A turn that is being trained is unacked: not to count it is to scale its worker away
    assert (about["protocol"], about["excludeUnacknowledged"]) == ("http", "false")
    assert about["queueName"] == Topology().assignments.name
    assert (scaler["spec"]["minReplicaCount"], scaler["spec"]["maxReplicaCount"]) == (0, 10)
    (worker,) = [o for o in made if o["metadata"]["name"] == "worker" and o["kind"] == "Deployment"]
    assert "replicas" not in worker["spec"]  # else every apply would undo what was scaled
    assert scaler["spec"]["scaleTargetRef"]["name"] == "worker"
    slots = [word for word in pods(made)["worker"]["containers"][0]["args"] if "--slots" in word]
    assert slots == [f"--slots={about['value']}"]


def test_the_brokers_settings_are_the_projects() -> None:
    ours = (ROOT / "broker" / "admin" / "rabbitmq.conf").read_text()
    lines = {line for line in ours.splitlines() if line and not line.startswith("#")}
    for file in ("single-node/fluffle.conf", "cluster-operator/rabbitmq.yaml"):
        there = {line.strip() for line in (KUBERNETES / "overlays" / file).read_text().splitlines()}
        assert lines <= there, file
