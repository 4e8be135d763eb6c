"""Metrics for Prometheus: what ``--metrics-port`` serves. Off unless asked for.

The aggregator's totals come from its ledger at each scrape, so they go on where they were when it
starts again, and agree with ``fluffle verify`` and the summary; what is in flight is read from the
coordinator. A worker counts for itself, from nothing, since it keeps nothing. Every name, with
its meaning, stands in docs/monitoring.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fluffle.aggregator.ledger.sites import Site
from fluffle.aggregator.ledger.totals import Totals, TotalsReader
from fluffle.schemas import ClientFailed, ClientUpdate, Evaluation, GlobalModel, Message

if TYPE_CHECKING:
    from fluffle.aggregator.service import AggregatorService

#: Buckets in seconds: from one fold of a small model to a training of ten minutes.
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 600)
#: Buckets in versions.
_STALENESS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)


def new_registry() -> CollectorRegistry:
    """A registry of its own for one role, with what Prometheus knows of every process."""
    # Else each counter has a twin that says when it was made.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def tell_service(registry: CollectorRegistry, role: str, federation: str) -> None:
    """Whose numbers these are: one Prometheus may scrape many federations."""
    about = {"role": role, "federation": federation, "version": version("fluffle")}
    Info("fluffle_service", "What this process is.", registry=registry).info(about)


class AggregatorMetrics(Collector):
    """What one aggregator has done, and does; ``on_timing`` is for its service."""

    def __init__(
        self, registry: CollectorRegistry, folder: Path, federation: str = "fluffle"
    ) -> None:
        self._federation = federation
        self.service: AggregatorService | None = None
        self._reader = TotalsReader(folder)
        self._lock = threading.Lock()
        self._stages = Histogram(
            "fluffle_stage_seconds",
            "Fold: taking in a message, a version's step included. Commit: making a version "
            "durable. Publish: handing it to the broker.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        registry.register(self)

    def on_timing(self, stage: str, seconds: float) -> None:
        """The service has spent this long on this."""
        self._stages.labels(stage).observe(seconds)

    def describe(self) -> list[Metric]:
        """Nothing is read before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What the ledger says, and what the coordinator has in hand."""
        with self._lock:
            now = self._reader.read()
            yield from _of_ledger(now, self._federation)
        yield from _of_coordinator(self.service)
        presence = self.service.presence if self.service else None
        yield from _of_sites(now.sites, presence.last_heard if presence else {})


def _of_ledger(now: Totals, federation: str) -> Iterator[Metric]:
    if not now.run_id:
        return
    about = {"run_id": now.run_id, "experiment": now.experiment, "federation": federation}
    yield InfoMetricFamily("fluffle_run", "Which run these numbers are of.", about)
    if now.global_version >= 0:
        yield _gauge("global_version", "The newest version of the model.", now.global_version)
    yield _counters("versions", "Versions made, by what closed the buffer.", "closed_by",
                    {"quorum": 0, "deadline": 0} | now.versions)  # fmt: skip
    yield _counter("updates_counted", "Updates counted in a version.", now.counted)
    yield _counters("updates_rejected", "Messages rejected.", "reason", now.rejected)
    yield _counter("updates_duplicate", "Updates that came again.", now.duplicates)
    yield _counter("dropouts", "Assignments that brought nothing in time.", now.dropouts)
    yield _counter("training_failures", "Trainings that failed.", now.failures)
    yield _staleness(now)
    yield _counter("examples", "Examples that updates were trained on.", now.arrived.examples)
    yield _counter("training_seconds", "Time of slots spent training.", now.arrived.train_s)
    yield _counter("slot_seconds", "Time of slots in all, waiting included.", now.arrived.slot_s)
    yield _counter("updates_received_bytes", "Size of updates, counted or not (bytes up).",
                   now.arrived.bytes_up + now.besides.bytes_up)  # fmt: skip
    yield _counter("models_received_bytes", "Models that workers received (bytes down).",
                   now.arrived.bytes_down + now.besides.bytes_down)  # fmt: skip
    if now.evaluated_version is not None:
        yield _gauge("evaluated_version", "The newest version evaluated.", now.evaluated_version)
    if "accuracy" in now.metrics:
        yield _gauge("accuracy_ratio", "Accuracy of that version.", now.metrics["accuracy"])
    if "loss" in now.metrics:
        yield _gauge("loss", "Loss of that version.", now.metrics["loss"])


def _of_coordinator(service: AggregatorService | None) -> Iterator[Metric]:
    """Read from outside the service's thread; numbers may be one message old."""
    coordinator = service.coordinator if service else None
    leads = coordinator is not None
    yield _gauge("aggregator_leads", "1 while this aggregator leads, 0 on standby.", int(leads))
    if coordinator is None:
        return
    experiment = coordinator.experiment
    if experiment.task.clients:  # sites have no turns, and "0 of 0" would say that nobody trains
        yield _gauge("in_flight_clients", "Clients that have a turn.", len(coordinator.turns.open))
        yield _gauge("concurrency_clients", "How many may have one.", experiment.concurrency)
    yield _gauge("buffer_updates", "Updates in the open buffer.", coordinator.buffer.size)
    yield _gauge("quorum_updates", "How many close it.", experiment.quorum)


def _of_sites(sites: list[Site], heard: Mapping[str, float]) -> Iterator[Metric]:
    """One series for each name on the allow-list: strangers make none."""
    if not sites:
        return
    counters = {
        "site_updates_counted": ("Updates of a site that a version counts.", "counted"),
        "site_failures": ("Trainings that failed there.", "failed"),
        "site_rejected": ("Messages of the site's user that were rejected.", "rejected"),
    }
    for name, (text, what) in counters.items():
        family = CounterMetricFamily(f"fluffle_{name}", text, labels=["site"])
        for site in sites:
            family.add_metric([site.name], getattr(site, what))
        yield family
    text = "The version that its newest recorded update was trained from."
    versions = GaugeMetricFamily("fluffle_site_base_version", text, labels=["site"])
    text = "When a site was last heard of, in seconds since 1970."
    seen = GaugeMetricFamily("fluffle_site_last_seen_timestamp_seconds", text, labels=["site"])
    for site in sites:
        if site.version is not None:
            versions.add_metric([site.name], site.version)
        at = max(site.seen_at or 0.0, heard.get(site.name, 0.0))
        if at:
            seen.add_metric([site.name], at)
    yield from (versions, seen)


def _staleness(now: Totals) -> HistogramMetricFamily:
    bounds = (*_STALENESS, float("inf"))
    within = [0] * len(bounds)
    for staleness, updates in now.staleness.items():
        within[next(i for i, bound in enumerate(bounds) if staleness <= bound)] += updates
    buckets = [
        ("+Inf" if bound == float("inf") else str(float(bound)), total)
        for bound, total in zip(bounds, accumulate(within), strict=True)
    ]
    total = sum(staleness * updates for staleness, updates in now.staleness.items())
    text = "How many versions behind an update was when it was folded in."
    return HistogramMetricFamily("fluffle_staleness_versions", text, buckets, total)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"fluffle_{name}", text, value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"fluffle_{name}", text, value)


def _counters(name: str, text: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"fluffle_{name}", text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family


class WorkerMetrics:
    """What one worker process has done since it started: callbacks for its service."""

    def __init__(self, registry: CollectorRegistry, slots: int) -> None:
        self._turns = Counter(
            "fluffle_worker_turns", "Turns by what came of them.", ["outcome"], registry=registry
        )
        for outcome in ("trained", "initialised", "failed", "dropped"):
            self._turns.labels(outcome)  # so that they are seen at 0
        self._training = Histogram(
            "fluffle_worker_training_seconds",
            "Time of one client's local training.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._waiting = Counter(
            "fluffle_worker_waiting_seconds",
            "Time of slots that did not go into training, over turns that brought an update.",
            registry=registry,
        )
        self._examples = Counter(
            "fluffle_worker_examples", "Examples trained on.", registry=registry
        )
        self._received = Counter(
            "fluffle_worker_received_bytes", "Global models received.", registry=registry
        )
        self._version = Gauge(
            "fluffle_worker_model_version", "The newest model received.", registry=registry
        )
        Gauge(
            "fluffle_worker_slots", "Clients that are trained at the same time.", registry=registry
        ).set(slots)

    def on_model(self, model: GlobalModel, size: int) -> None:
        """A global model of ``size`` bytes has arrived."""
        self._received.inc(size)
        self._version.set(model.version)

    def on_turn(self, answer: Message | None) -> None:
        """A turn is over; ``answer`` is what was sent, None if it was for nobody any more."""
        if isinstance(answer, ClientUpdate) and answer.sends == "initial":
            self._turns.labels("initialised").inc()
        elif isinstance(answer, ClientUpdate):
            self._turns.labels("trained").inc()
            self._training.observe(answer.train_s)
            self._waiting.inc(max(0.0, answer.slot_s - answer.train_s))
            self._examples.inc(answer.examples)
        else:
            failed = isinstance(answer, ClientFailed)
            self._turns.labels("failed" if failed else "dropped").inc()


class EvaluatorMetrics:
    """What one evaluator process has done since it started: a callback for its service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._evaluating = Histogram(
            "fluffle_evaluator_evaluation_seconds",
            "Time of one evaluation.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._version = Gauge(
            "fluffle_evaluator_model_version", "The newest version evaluated.", registry=registry
        )

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """An evaluation was sent."""
        self._evaluating.observe(evaluation.seconds)
        self._version.set(evaluation.version)
