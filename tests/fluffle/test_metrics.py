"""Metrics as Prometheus gets them: over HTTP, from a run, and in agreement with its ledger."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from fluffle.aggregator.service import AggregatorService
from fluffle.broker import Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.metrics import AggregatorMetrics, WorkerMetrics, new_registry
from fluffle.probes import served
from fluffle.schemas import ClientFailed, ClientUpdate, UserError
from tests.aggregator.test_service import check, clients, envelope, experiment

Samples = dict[str, float]


def scrape(url: str) -> Samples:
    """Every sample by its name and labels, as in PromQL: ``name{label="value"}``."""
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


class Measured:
    """An aggregator's service with its metrics served, as ``fluffle aggregator`` has them."""

    def __init__(self, broker: EmbeddedBroker, folder: Path, url: str, registry: CollectorRegistry):
        self.url = url
        metrics = AggregatorMetrics(registry, folder)
        self.port = broker.aggregator()
        self.service = metrics.service = AggregatorService(
            experiment(experiment={"versions": 30}, aggregation={"keep_versions": 2}),
            self.port,
            folder,
            run_id="run",
            on_timing=metrics.on_timing,
        )


@contextmanager
def measured(broker: EmbeddedBroker, folder: Path) -> Iterator[Measured]:
    registry = new_registry()
    with served(registry, 0, "127.0.0.1") as url:
        one = Measured(broker, folder, url, registry)
        yield one
        one.port.close()


def naughty(update: ClientUpdate) -> list[Any]:
    """A good update, and now and then a bad one, a second copy or a failure beside it."""
    if update.sends == "initial" or update.turn % 5:
        return [update]
    nan = {"trainable/0": np.full(1000, np.nan, np.float32)}
    garbage = Envelope(b"\x00garbage" * update.turn, "client-update")
    return [garbage, envelope(update.model_copy(update={"tensors": nan})), update, update]


def agrees(samples: Samples, folder: Path) -> None:
    """What was scraped is what the ledger says."""
    summary = check(folder)
    rejected = {
        name.split('"')[1]: value
        for name, value in samples.items()
        if name.startswith("fluffle_updates_rejected_total")
    }
    assert rejected == summary["updates_rejected"]
    assert samples["fluffle_global_version"] == summary["versions"]
    assert samples["fluffle_updates_counted_total"] == summary["updates_counted"]
    assert samples["fluffle_updates_duplicate_total"] == summary["duplicates"]
    assert samples["fluffle_dropouts_total"] == summary["dropouts"]
    assert samples["fluffle_training_failures_total"] == summary["failures"]
    assert samples["fluffle_updates_received_bytes_total"] == summary["bytes_up"]
    assert samples["fluffle_models_received_bytes_total"] == summary["bytes_down"]
    train, slot = (samples[f"fluffle_{kind}_seconds_total"] for kind in ("training", "slot"))
    assert train / slot == pytest.approx(summary["train_fraction"])


def test_a_scrape_agrees_with_the_ledger(tmp_path: Path) -> None:
    # Given a run in which something of everything happens
    broker = EmbeddedBroker()
    with measured(broker, tmp_path) as one, clients(broker, naughty):
        before = scrape(one.url)
        assert one.service.run() == "finished"
        after = scrape(one.url)
    # Then nothing was said of a run before there was one, and of this one the ledger's numbers
    assert before["fluffle_aggregator_leads"] == 0
    assert "fluffle_global_version" not in before
    agrees(after, tmp_path)
    assert after["fluffle_updates_counted_total"] == 90
    assert after['fluffle_updates_rejected_total{reason="not_finite"}'] >= 1
    assert after["fluffle_updates_duplicate_total"] >= 1
    about = 'experiment="experiment",federation="fluffle",run_id="run"'
    assert after[f"fluffle_run_info{{{about}}}"] == 1
    # And the histograms are whole: every recorded update has a staleness, every version a commit
    assert after["fluffle_staleness_versions_count"] >= 90
    assert (
        after['fluffle_staleness_versions_bucket{le="+Inf"}']
        == (after["fluffle_staleness_versions_count"])
    )
    assert after['fluffle_stage_seconds_count{stage="commit"}'] == 31
    assert after["process_resident_memory_bytes"] > 1e6


def test_scrapes_in_the_middle_see_who_is_in_flight_and_counters_that_never_fall(
    tmp_path: Path,
) -> None:
    broker = EmbeddedBroker()
    with measured(broker, tmp_path) as one, clients(broker, naughty):
        thread = threading.Thread(target=one.service.run)
        thread.start()
        scrapes = []
        while thread.is_alive():
            scrapes.append(scrape(one.url))
        thread.join()
        scrapes.append(scrape(one.url))
    leading = [s for s in scrapes if s["fluffle_aggregator_leads"]]
    assert leading, scrapes
    assert all(0 <= s["fluffle_in_flight_clients"] <= 6 for s in leading)
    assert leading[-1]["fluffle_quorum_updates"] == 3
    for name in ("fluffle_updates_counted_total", "fluffle_staleness_versions_count"):
        seen = [s.get(name, 0) for s in scrapes]
        assert seen == sorted(seen)


def test_totals_go_on_where_they_were_when_the_aggregator_starts_again(tmp_path: Path) -> None:
    # Given an aggregator that is stopped in the middle
    broker = EmbeddedBroker()
    with measured(broker, tmp_path) as one, clients(broker, naughty) as team:
        stopper = threading.Thread(target=_stop_after, args=(one, team, 40))
        stopper.start()
        assert one.service.run() == "stopped"
        stopper.join()
        first = scrape(one.url)
    assert first["fluffle_updates_counted_total"] >= 3
    # When another, in a process that knows nothing, goes on
    with measured(broker, tmp_path) as other:
        resumed = scrape(other.url)
        with clients(broker, naughty):
            assert other.service.run() == "finished"
        last = scrape(other.url)
    # Then its first scrape says what the last one said, and its last what the ledger says
    ours = {n: v for n, v in first.items() if "_total" in n and n.startswith("fluffle_")}
    assert {n: resumed[n] for n in ours} == ours
    assert all(last[n] >= v for n, v in ours.items())
    agrees(last, tmp_path)


def _stop_after(one: Measured, team: Any, sent: int) -> None:
    while len(team.sent) < sent:
        threading.Event().wait(0.001)
    one.service.stop()


def test_a_worker_counts_its_turns_by_what_came_of_them() -> None:
    registry = new_registry()
    metrics = WorkerMetrics(registry, slots=2)
    about = {"update_id": "a", "client": "1", "turn": 1, "base_version": 0, "worker": "w"}
    run = {"run_id": "run", "run_started": 1, "epoch": 1}
    update = ClientUpdate.model_validate(
        {**about, "run": run, "sends": "delta", "examples": 600, "train_s": 2.0, "slot_s": 2.5,
         "tensors": {}}
    )  # fmt: skip
    for answer in (
        update.model_copy(update={"sends": "initial", "examples": 0}),
        update,
        update,
        ClientFailed.model_validate({**about, "run": run, "reason": "no data"}),
        None,
    ):
        metrics.on_turn(answer)
    with served(registry, 0, "127.0.0.1") as url:
        samples = scrape(url)
    turns = {
        outcome: samples[f'fluffle_worker_turns_total{{outcome="{outcome}"}}']
        for outcome in ("initialised", "trained", "failed", "dropped")
    }
    assert turns == {"initialised": 1, "trained": 2, "failed": 1, "dropped": 1}
    assert samples["fluffle_worker_training_seconds_sum"] == 4
    assert samples["fluffle_worker_waiting_seconds_total"] == 1
    assert samples["fluffle_worker_examples_total"] == 1200
    assert samples["fluffle_worker_slots"] == 2


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    registry = new_registry()
    with served(registry, 0, "127.0.0.1") as url:
        port = int(url.split(":")[2].split("/")[0])
        with (
            pytest.raises(UserError, match=r"choose another --metrics-port"),
            served(registry, port, "127.0.0.1"),
        ):
            pass
