"""The monitoring profile: what the dashboard asks for is there to be asked for.

Grafana and Prometheus themselves are not started here.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from fluffle.broker.admin.node import Node
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.metrics import EvaluatorMetrics, WorkerMetrics, new_registry, tell_service
from fluffle.probes import served
from fluffle.schemas import ClientUpdate, Evaluation
from tests.aggregator.test_service import clients
from tests.fluffle.test_metrics import measured, naughty, scrape

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "monitoring/grafana/dashboards/fluffle.json").read_text())
PROMETHEUS = yaml.safe_load((ROOT / "monitoring/prometheus.yml").read_text())
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
ALERTS = yaml.safe_load((ROOT / "monitoring/alerts.yml").read_text())["groups"][0]["rules"]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def names_in(expression: str) -> set[str]:
    """The metrics that PromQL asks for: neither functions, labels, ranges nor strings."""
    of_labels = r"\b(by|without|on|ignoring|group_left)\s*\([^)]*\)"
    bare = re.sub(rf"\{{[^}}]*\}}|\[[^]]*\]|{of_labels}", " ", expression)
    words = re.finditer(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare)
    found = {word[0] for word in words if not bare[word.end() :].lstrip().startswith("(")}
    return found - {"or", "and", "unless"}


ASKED = set().union(*map(names_in, [*EXPRESSIONS, *(rule["expr"] for rule in ALERTS)]))
OF_THE_BROKER = {name for name in ASKED if name.startswith("rabbitmq_")}


#: In runs that have sites: tests/fluffle/test_status.py.
SITES = {
    "fluffle_site_last_seen_timestamp_seconds",
    "fluffle_site_base_version",
    "fluffle_site_updates_counted_total",
    "fluffle_site_failures_total",
    "fluffle_site_rejected_total",
}
OF_SITES = {name for name in ASKED if name.startswith("fluffle_site_")}


def test_every_panel_and_alert_is_of_one_federation() -> None:
    # Two federations, or two runs, that one Prometheus scrapes are told apart
    for expression in EXPRESSIONS:
        if "rabbitmq_process" in expression or "rabbitmq_resident" in expression:
            continue  # the broker's own memory
        selectors = re.findall(r"\{[^}]*\}", expression)
        assert len(selectors) == len(re.findall(r"\b(?:fluffle|process|rabbitmq)_\w+", expression))
        assert all(re.search(r"\$(federation|aggregator|member)", one) for one in selectors)
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert known == {"federation", "run", "member", "aggregator"}
    for rule in ALERTS:
        assert "federation" in rule["expr"] or "by (queue)" in rule["expr"], rule["alert"]
        assert "$labels.federation" in rule["annotations"]["summary"] or "queue" in rule["expr"]


def test_every_alert_has_something_to_read() -> None:
    headings = re.findall(r"^### (.*)$", (ROOT / "docs/monitoring.md").read_text(), re.MULTILINE)
    anchors = {f"docs/monitoring.md#{h.lower().replace(' ', '-')}" for h in headings}
    assert {rule["annotations"]["runbook"] for rule in ALERTS} == anchors


def test_names_are_found_in_promql() -> None:
    assert names_in(
        'sum by (le) (rate(a_bucket{queue=~"[^.]+[.]x", b="c"}[$__rate_interval])) * 60'
        " / d_total or vector(0)"
    ) == {"a_bucket", "d_total"}


def evaluated(update: ClientUpdate) -> list[Any]:
    """What naughty clients send, and an evaluation with each update."""
    evaluation = Evaluation(
        run=update.run,
        version=update.base_version,
        worker="evaluator",
        metrics={"accuracy": 0.5, "loss": 1.0},
        examples=10,
    )
    return naughty(update) if update.sends == "initial" else [*naughty(update), evaluation]


def test_the_dashboard_asks_for_nothing_that_we_do_not_serve(tmp_path: Path) -> None:
    # Given what the services serve after a run with rejections and evaluations
    broker = EmbeddedBroker()
    with measured(broker, tmp_path) as one, clients(broker, evaluated):
        assert one.service.run() == "finished"
        samples = scrape(one.url)
    registry = new_registry()
    tell_service(registry, "worker", "fluffle")
    WorkerMetrics(registry, 1)
    EvaluatorMetrics(registry)
    with served(registry, 0, "127.0.0.1") as url:
        samples |= scrape(url)
    ours = {name.partition("{")[0] for name in samples}
    # Then every name that is not the broker's is among it
    assert len(EXPRESSIONS) > 20
    assert ours >= ASKED - OF_THE_BROKER - OF_SITES
    # And every name of ours stands in the documentation
    families = {re.sub("_(bucket|count|sum)$", "", n) for n in ours if "fluffle" in n}
    told = set(re.findall(r"`(fluffle_\w+)`", (ROOT / "docs/monitoring.md").read_text()))
    assert families == {name for name in told if not name.startswith("fluffle_site_")}
    assert told - families == {f"{name}" for name in SITES}
    assert samples["fluffle_accuracy_ratio"] == 0.5
    assert samples["fluffle_loss"] == 1.0


@pytest.mark.rabbitmq
@pytest.mark.slow
def test_the_dashboard_asks_for_nothing_that_rabbitmq_does_not_serve() -> None:
    # Given a server with its Prometheus plugin
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = Node(settings={"prometheus.tcp.port": str(port), "prometheus.tcp.ip": "127.0.0.1"})
    (node.folder / "enabled_plugins").write_text("[rabbitmq_prometheus].\n")
    with node:
        # When it is scraped as prometheus.yml says
        text = ""
        for job in PROMETHEUS["scrape_configs"]:
            if job["job_name"].startswith("rabbitmq"):
                query = urlencode(job.get("params", {}), doseq=True)
                path = job.get("metrics_path", "/metrics")
                with urlopen(f"http://127.0.0.1:{port}{path}?{query}", timeout=30) as answer:
                    text += answer.read().decode()
    # Then every name is declared there
    assert OF_THE_BROKER
    assert set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) >= OF_THE_BROKER


def test_prometheus_scrapes_the_services_of_the_compose_file_where_they_serve() -> None:
    for job in PROMETHEUS["scrape_configs"]:
        found = [*job.get("dns_sd_configs", []), *job.get("static_configs", [])]
        for one in found:
            hosts = one.get("names") or [target.partition(":")[0] for target in one["targets"]]
            assert set(hosts) <= set(COMPOSE)
    for service in ("aggregator", "worker", "evaluator"):
        command = COMPOSE[service]["command"]
        told = " ".join([command] if isinstance(command, str) else command).replace("=", " ")
        assert "--metrics-port 9464" in told
        assert "--metrics-address 0.0.0.0" in told
    ports = {c["port"] for j in PROMETHEUS["scrape_configs"] for c in j.get("dns_sd_configs", [])}
    assert ports == {9464}


def test_grafana_finds_the_dashboard_and_every_panel_its_data_source() -> None:
    provisioning = ROOT / "monitoring/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((provisioning / "dashboards/fluffle.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["grafana"]["volumes"])
    assert provider["options"]["path"] == mounts["./monitoring/grafana/dashboards"]
    assert mounts["./monitoring/grafana/provisioning"] == "/etc/grafana/provisioning"
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"]["uid"] == source["uid"]
        assert all(target["datasource"]["uid"] == source["uid"] for target in panel["targets"])
    assert source["url"] == "http://prometheus:9090"
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert {COMPOSE[name]["profiles"][0] for name in ("prometheus", "grafana")} == {"monitoring"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_configuration_and_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:{i}", "expr": expr.replace("$__rate_interval", "1m")}
        for i, expr in enumerate(EXPRESSIONS)
    ]
    (tmp_path / "rules.yml").write_text(yaml.dump({"groups": [{"name": "all", "rules": rules}]}))
    for what in (["config", ROOT / "monitoring/prometheus.yml"], ["rules", tmp_path / "rules.yml"]):
        checked = subprocess.run(["promtool", "check", *what], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
