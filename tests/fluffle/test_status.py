"""``fluffle status`` and the metrics of sites: who is there, and what became of what each sent."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fluffle.broker import Envelope
from fluffle.commands.app import app
from fluffle.display import snapshot
from fluffle.metrics import AggregatorMetrics, new_registry
from fluffle.schemas import ClientFailed, ClientUpdate, Event, UserError
from fluffle.schemas.messages import resident_update_id
from tests.aggregator.scripted import Federation, noise

RESIDENTS = {"residents": ["lab-1", "lab-2"], "identity": "none"}


def sent_by(federation: Federation, client: str, base: int) -> ClientUpdate:
    coordinator = federation.service.coordinator
    assert coordinator is not None
    return ClientUpdate(
        run=coordinator.run,
        update_id=resident_update_id("run", client, base, 0),
        **{"client": client, "turn": 1, "base_version": base, "worker": client, "examples": 5},
        **{"sends": federation.sends, "tensors": noise(federation.shapes[False], base)},
    )


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """A run with two sites, of which one has sent an update, another again, and one failure."""
    began = Federation(
        tmp_path / "run",
        participation=RESIDENTS,
        aggregation={"quorum": 1, "strategy": "fedbuff"},
        experiment={"versions": 50},
    )
    began.answer(1)
    update = sent_by(began, "lab-1", 0)
    again = update.model_copy(update={"update_id": resident_update_id("run", "lab-1", 0, 1)})
    failed = ClientFailed(
        run=update.run,
        update_id=resident_update_id("run", "lab-1", 1, 0),
        **{
            "client": "lab-1",
            "turn": 1,
            "worker": "lab-1",
            "base_version": 1,
            "reason": "ValueError",
        },
    )
    for message in (update, again, failed):
        began.worker.submit(Envelope.of(message))
        began.settle()
    return began


def test_each_site_is_told_with_what_became_of_what_it_sent(federation: Federation) -> None:
    # When its folder is looked at, while it is led
    done = CliRunner().invoke(app, ["status", str(federation.folder), "--json"])
    assert done.exit_code == 0, done.output
    run = json.loads(done.output)["run"]
    # Then every name of the allow-list is there
    one, other = run["sites"]
    assert (one["name"], one["counted"], one["failed"], one["version"]) == ("lab-1", 1, 1, 0)
    assert abs(time.time() - one["seen_at"]) < 3600
    assert (other["name"], other["counted"], other["seen_at"]) == ("lab-2", 0, None)
    # And a person can read it
    shown = CliRunner().invoke(app, ["status", str(federation.folder)]).output
    assert "lab-2" in shown
    assert "s ago" in shown


def test_sites_have_series_of_their_own_and_strangers_none(federation: Federation) -> None:
    # Given the metrics of that aggregator
    registry = new_registry()
    metrics = AggregatorMetrics(registry, federation.folder)
    metrics.service = federation.service
    # When a site that has sent nothing yet says it is here, and so does a stranger
    run = sent_by(federation, "lab-2", 0).run
    for name in ("lab-2", "stranger"):
        federation.worker.emit(Envelope.of(Event(run=run, kind="joined", worker=name, slots=1)))
    federation.settle()
    # Then it has been seen
    seen = "fluffle_site_last_seen_timestamp_seconds"
    assert (registry.get_sample_value(seen, {"site": "lab-2"}) or 0) > 1e9
    assert registry.get_sample_value(seen, {"site": "stranger"}) is None
    counted = "fluffle_site_updates_counted_total"
    assert registry.get_sample_value(counted, {"site": "lab-1"}) == 1.0
    assert registry.get_sample_value("fluffle_site_failures_total", {"site": "lab-1"}) == 1.0


def test_a_run_of_sites_alone_shows_no_turns_in_flight(tmp_path: Path) -> None:
    federation = Federation(tmp_path, task={"clients": 0}, participation=RESIDENTS)
    now = snapshot(federation.service)
    assert now is not None
    assert now.in_flight is None
    registry = new_registry()
    AggregatorMetrics(registry, federation.folder).service = federation.service
    assert registry.get_sample_value("fluffle_quorum_updates") == 2
    assert registry.get_sample_value("fluffle_in_flight_clients") is None
    assert Federation(tmp_path / "pool").service.coordinator is not None


def test_who_names_nothing_is_told_what_to_name() -> None:
    with pytest.raises(UserError, match="name a run folder, a broker"):
        CliRunner().invoke(app, ["status"], catch_exceptions=False)
