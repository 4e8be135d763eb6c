"""Checks a run's ledger against the invariants (DESIGN section 6), as far as a ledger can show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from aggregator.admission import REASONS, own_id
from aggregator.ledger import Ledger
from schemas import Experiment

Check = Callable[[Ledger, Experiment], Iterator[str]]


def verify(ledger: Ledger) -> list[str]:
    """What is wrong, a line each with its evidence; nothing if all is well."""
    experiment = Experiment.model_validate(json.loads(ledger.meta["experiment"]))
    return [line for check in CHECKS for line in check(ledger, experiment)]


def _file_is_whole(ledger: Ledger, experiment: Experiment) -> Iterator[str]:
    for (text,) in ledger.query("PRAGMA integrity_check"):
        if text != "ok":
            yield f"ledger.sqlite is damaged: {text}"


def _versions_are_contiguous(ledger: Ledger, experiment: Experiment) -> Iterator[str]:
    rows = ledger.query("SELECT version, epoch FROM versions ORDER BY version")
    epoch = 0
    for expected, (version, its_epoch) in enumerate(rows):
        if version != expected:
            yield f"version {expected} is missing: after it comes {version}"
            return
        if its_epoch < epoch:
            yield f"version {version} was made in epoch {its_epoch}, after one of epoch {epoch}"
        epoch = its_epoch
    if epoch > int(ledger.meta["epoch"]):
        yield f"a version of epoch {epoch}, but only {ledger.meta['epoch']} have begun"


def _versions_say_what_they_are_made_of(ledger: Ledger, experiment: Experiment) -> Iterator[str]:
    rows = ledger.query(
        "SELECT v.version, v.closed_by, v.updates, COUNT(u.update_id) FROM versions v"
        " LEFT JOIN updates u ON u.version = v.version AND u.disposition = 'counted'"
        " GROUP BY v.version"
    )
    least = {"quorum": experiment.quorum, "deadline": experiment.aggregation.min_updates}
    for version, closed_by, said, counted in rows:
        if said != counted:
            yield f"version {version} says it counts {said} updates; the ledger has {counted}"
        if counted < least.get(closed_by, 0):
            yield f"version {version} was closed by {closed_by} with only {counted} updates"


def _updates_have_one_disposition(ledger: Ledger, experiment: Experiment) -> Iterator[str]:
    rows = ledger.query(
        "SELECT update_id, disposition, version FROM updates WHERE NOT ("
        " (disposition = 'counted' AND version IN (SELECT version FROM versions))"
        " OR (disposition IN ('buffered', 'unused') AND version IS NULL))"
    )
    for update_id, disposition, version in rows:
        yield f"update {update_id} is {disposition} in version {version}, which cannot be"
    open_ones = ledger.count("updates WHERE disposition = 'buffered'")
    if ledger.meta["status"] != "running" and open_ones:
        yield f"the run is {ledger.meta['status']}, but {open_ones} updates are still buffered"


def _updates_are_ours(ledger: Ledger, experiment: Experiment) -> Iterator[str]:
    run_id = ledger.meta["run_id"]
    rows = ledger.query("SELECT update_id, turn, client, base_version FROM updates")
    for update_id, turn, client, base in rows:
        if not own_id(update_id, run_id, client, turn, base):
            yield f"update {update_id} does not belong to turn {turn} of client {client}"


def _staleness_is_true(ledger: Ledger, experiment: Experiment) -> Iterator[str]:
    limit = experiment.max_staleness
    rows = ledger.query(
        "SELECT update_id, version, base_version, staleness FROM updates"
        " WHERE disposition = 'counted' AND version > 0"
    )
    for update_id, version, base, staleness in rows:
        if staleness != version - 1 - base or staleness < 0:
            yield (
                f"update {update_id}, trained from version {base} and counted in {version}, "
                f"has staleness {staleness}"
            )
        if limit is not None and staleness > limit:
            yield f"update {update_id} was counted with staleness {staleness}, over {limit}"


def _rejections_have_reasons(ledger: Ledger, experiment: Experiment) -> Iterator[str]:
    for message_id, reason in ledger.query("SELECT message_id, reason FROM rejections"):
        if reason not in REASONS:
            yield f"message {message_id} was rejected for no known reason: {reason}"


def _weights_are_there(ledger: Ledger, experiment: Experiment) -> Iterator[str]:
    keep = experiment.aggregation.keep_versions
    rows = ledger.query("SELECT version, file FROM versions ORDER BY version DESC LIMIT ?", keep)
    for version, name in rows:
        if not ledger.store.intact(name):
            yield f"the weights of version {version} are missing or damaged: {name}"
    buffer_file = ledger.meta.get("buffer_file")
    if buffer_file and not ledger.store.intact(buffer_file):
        yield f"the open buffer is missing or damaged: {buffer_file}"


CHECKS: tuple[Check, ...] = (
    _file_is_whole,
    _versions_are_contiguous,
    _versions_say_what_they_are_made_of,
    _updates_have_one_disposition,
    _updates_are_ours,
    _staleness_is_true,
    _rejections_have_reasons,
    _weights_are_there,
)
