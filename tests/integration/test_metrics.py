"""``--metrics-port`` on real processes: each serves its own numbers, and they are the ledger's."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from tests.fluffle.test_metrics import scrape
from tests.integration.processes import PATIENCE_S, Start, Started, verified, wait_for_version

pytestmark = [pytest.mark.rabbitmq, pytest.mark.tensorflow, pytest.mark.slow]


def metrics_url(one: Started) -> str:
    """What it says where its metrics are."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := re.search(r"metrics: (http://127\.0\.0\.1:\d+/metrics)", one.output)):
        assert one.process.poll() is None, one.output
        assert time.monotonic() < deadline, one.output
        time.sleep(0.05)
    return found[1]


def test_every_service_serves_its_numbers_and_a_restarted_aggregator_goes_on_counting(
    start: Start, rabbitmq: Node, federation: str, experiment: Path, tmp_path: Path
) -> None:
    # Given a run of an aggregator, a worker and an evaluator that all serve metrics
    out = tmp_path / "out"
    where = ("--broker", rabbitmq.url, "--federation", federation, "--metrics-port", 0)
    lead = ("aggregator", experiment, *where, "--out", out, "--json")
    aggregator = start(*lead)
    worker = start("worker", *where, "--slots", 2, "--stay")
    evaluator = start("evaluator", *where, "--stay")
    urls = [metrics_url(one) for one in (worker, evaluator)]
    # When the aggregator is killed in the middle
    wait_for_version(out, 8, aggregator, worker, evaluator)
    before = scrape(metrics_url(aggregator))
    aggregator.kill()
    aggregator.wait()
    # Then the next one goes on with its totals, which are the ledger's
    aggregator = start(*lead)
    wait_for_version(out, 20, aggregator, worker, evaluator)
    after = scrape(metrics_url(aggregator))
    for name in ("versions_total{closed_by=\"quorum\"}", "updates_counted_total",
                 "updates_received_bytes_total", "training_seconds_total"):  # fmt: skip
        assert 0 < before[f"fluffle_{name}"] <= after[f"fluffle_{name}"]
    assert after["fluffle_updates_counted_total"] >= 60
    # And at the end the worker has trained every update that was counted, 1,000 examples each
    assert aggregator.wait() == 0, aggregator.output
    summary = aggregator.summary()
    of_worker, of_evaluator = map(scrape, urls)
    trained = of_worker['fluffle_worker_turns_total{outcome="trained"}']
    assert trained >= summary["updates_counted"] == 120
    assert of_worker["fluffle_worker_examples_total"] == 1000 * trained
    assert of_worker["fluffle_worker_training_seconds_count"] == trained
    assert of_worker["fluffle_worker_received_bytes_total"] >= summary["bytes_down"] > 0
    assert of_worker["fluffle_worker_model_version"] == summary["versions"] == 40
    assert of_evaluator["fluffle_evaluator_model_version"] == 40
    verified(start, out)
