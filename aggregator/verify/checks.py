"""What a run's ledger and folder can show of the invariants, each check by itself.

They read only, need no weights but those of the kept versions, and take seconds for 100,000
updates. Files that no row names are harmless: a crash between file and transaction leaves them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator

from aggregator.admission import REASONS, own_id
from aggregator.archive import UPDATES
from aggregator.reading import LedgerReader
from aggregator.strategies.base import model_of
from schemas import Experiment, tensors_sha256

Check = Callable[[LedgerReader, Experiment], Iterator[str]]


def verify(ledger: LedgerReader) -> list[str]:
    """What is wrong, a line each with its evidence; nothing if all is well."""
    try:
        experiment = Experiment.model_validate_json(ledger.meta["experiment"])
        return [line for check in CHECKS for line in check(ledger, experiment)]
    except sqlite3.DatabaseError as error:
        return [f"ledger.sqlite is damaged: {error}"]


def _file_is_whole(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    for (text,) in ledger.query("PRAGMA integrity_check"):
        if text != "ok":
            yield f"ledger.sqlite is damaged: {text}"


def _versions_are_contiguous(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
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


def _versions_say_what_they_are_made_of(
    ledger: LedgerReader, experiment: Experiment
) -> Iterator[str]:
    rows = ledger.query(
        "SELECT v.version, v.closed_by, v.updates, COUNT(u.update_id) FROM versions v"
        " LEFT JOIN updates u ON u.version = v.version AND u.disposition = 'counted'"
        " GROUP BY v.version"
    )
    least = {"quorum": experiment.quorum, "deadline": experiment.min_updates}
    for version, closed_by, said, counted in rows:
        if said != counted:
            yield f"version {version} says it counts {said} updates; the ledger has {counted}"
        if counted < least.get(closed_by, 0):
            yield f"version {version} was closed by {closed_by} with only {counted} updates"


def _updates_have_one_disposition(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
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


def _updates_are_ours(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    run_id = ledger.meta["run_id"]
    rows = ledger.query("SELECT update_id, turn, client, base_version FROM updates")
    for update_id, turn, client, base in rows:
        if not own_id(update_id, run_id, client, turn, base):
            yield f"update {update_id} does not belong to turn {turn} of client {client}"


def _staleness_is_true(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
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


def _rejections_have_reasons(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    for message_id, reason in ledger.query("SELECT message_id, reason FROM rejections"):
        if reason not in REASONS:
            yield f"message {message_id} was rejected for no known reason: {reason}"


def _weights_are_there(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    keep = experiment.aggregation.keep_versions
    rows = ledger.query(
        "SELECT version, file, weights_sha256 FROM versions ORDER BY version DESC LIMIT ?", keep
    )
    if experiment.aggregation.keep_updates and rows and rows[-1][0] > 0:
        rows += ledger.query("SELECT version, file, weights_sha256 FROM versions WHERE version = 0")
    for version, name, sha256 in rows:
        if not ledger.store.intact(name):
            yield f"the weights of version {version} are missing or damaged: {name}"
        elif tensors_sha256(model_of(ledger.store.read(name))) != sha256:
            yield f"the weights of version {version} are not those recorded: {name}"
    buffer_file = ledger.meta.get("buffer_file")
    if buffer_file and not ledger.store.intact(buffer_file):
        yield f"the open buffer is missing or damaged: {buffer_file}"


def _kept_updates_are_there(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    if not experiment.aggregation.keep_updates:
        return
    rows = ledger.query(
        "SELECT update_id FROM updates WHERE update_id NOT IN (SELECT update_id FROM kept)"
    )
    for (update_id,) in rows:
        yield f"update {update_id} is recorded, but was not kept"
    rows = ledger.query(
        "SELECT update_id FROM kept WHERE update_id NOT IN (SELECT update_id FROM updates)"
    )
    for (update_id,) in rows:
        yield f"update {update_id} was kept, but is recorded nowhere"
    rows = ledger.query("SELECT segment, MAX(start + bytes) FROM kept GROUP BY segment")
    for segment, end in rows:
        path = ledger.folder / UPDATES / segment
        size = path.stat().st_size if path.is_file() else 0
        if size < end:
            yield f"kept updates are missing: {segment} has {size} of {end} bytes"


CHECKS: tuple[Check, ...] = (
    _file_is_whole,
    _versions_are_contiguous,
    _versions_say_what_they_are_made_of,
    _updates_have_one_disposition,
    _updates_are_ours,
    _staleness_is_true,
    _rejections_have_reasons,
    _weights_are_there,
    _kept_updates_are_there,
)
