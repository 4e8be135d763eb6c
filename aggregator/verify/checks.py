"""Checks of a run's ledger against the invariants, each by itself.

They read only, and take seconds for 100,000 updates. ``files`` has those that look beside the
ledger, at weights and kept updates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fluffle.aggregator.coordinator.admission import REASONS, own_id
from fluffle.aggregator.ledger.reader import LEDGER, LedgerReader
from fluffle.aggregator.ledger.wal import examine_log
from fluffle.aggregator.triggers.base import Held
from fluffle.aggregator.triggers.registry import DEFAULT, TRIGGERS
from fluffle.schemas import ClientUpdate, DecodeError, Experiment, decode

Check = Callable[[LedgerReader, Experiment], Iterator[str]]

#: What a run can have come to.
STATUSES = ("running", "finished", "failed", "aborted")


def file_is_whole(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """SQLite's own check, and ours of its log."""
    if (damage := examine_log(ledger.folder / LEDGER).damage) is not None:
        yield f"ledger.sqlite is damaged: {damage}"
    for (text,) in ledger.query("PRAGMA integrity_check"):
        if text != "ok":
            yield f"ledger.sqlite is damaged: {text}"


def run_is_known(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """A status that there is, and counters that are numbers."""
    meta = ledger.meta
    if meta["status"] not in STATUSES:
        yield f"the run is {meta['status']!r}, which no run can be"
    for key in ("epoch", "turn", "run_started", "duplicates"):
        if not meta.get(key, "0").isdecimal():
            yield f"the run's {key} is no count: {meta[key]}"


def versions_are_contiguous(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """0, 1, 2, …, in epochs that only grow and have begun; files are named after them."""
    rows = ledger.query("SELECT version, epoch, file FROM versions ORDER BY version")
    epoch = 0
    for expected, (version, its_epoch, file) in enumerate(rows):
        if version != expected:
            yield f"version {expected} is missing: after it comes {version}"
            return
        if its_epoch < epoch:
            yield f"version {version} was made in epoch {its_epoch}, after one of epoch {epoch}"
        if not file.startswith(f"model-v{version:06d}-e{its_epoch}-"):
            yield f"version {version} of epoch {its_epoch} is in a file of another: {file}"
        epoch = its_epoch
    if epoch > int(ledger.meta["epoch"]):
        yield f"a version of epoch {epoch}, but only {ledger.meta['epoch']} have begun"


def versions_say_what_they_are_made_of(
    ledger: LedgerReader, experiment: Experiment
) -> Iterator[str]:
    """As many updates as are counted in it, and enough for what closed the buffer."""
    rows = ledger.query(
        "SELECT v.version, v.closed_by, v.updates, COUNT(u.update_id), TOTAL(u.examples),"
        " COUNT(DISTINCT u.client) FROM versions v"
        " LEFT JOIN updates u ON u.version = v.version AND u.disposition = 'counted'"
        " GROUP BY v.version"
    )
    table = experiment.aggregation
    trigger = TRIGGERS.checked(table.trigger, table.trigger_parameters)
    full = "quorum" if table.trigger == DEFAULT else "trigger"
    for version, closed_by, said, counted, examples, clients in rows:
        if (closed_by == "initial") != (version == 0) or closed_by not in (
            *("initial", "deadline", full),
        ):
            yield f"version {version} was closed by {closed_by!r}, which cannot be"
        if said != counted:
            yield f"version {version} says it counts {said} updates; the ledger has {counted}"
        held = Held(experiment.quorum, counted, int(examples), set(map(str, range(clients))))
        if closed_by != "initial" and counted < experiment.min_updates:
            yield f"version {version} was closed by {closed_by} with only {counted} updates"
        elif experiment.samples_secretly:
            continue  # chance says how many there are
        elif closed_by == full and trigger is not None and not trigger.due(held):
            yield (
                f"version {version} was closed by {closed_by} with only {counted} updates of "
                f"{clients} clients, trained on {int(examples)} examples"
            )


def updates_have_one_disposition(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """Counted in a version that there is, in the open buffer, or unused."""
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


def updates_have_their_places(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """The positions in a buffer are 0, 1, 2, …: the order in which it was folded is known."""
    rows = ledger.query(
        "SELECT version, COUNT(*), COUNT(DISTINCT position), MIN(position), MAX(position)"
        " FROM updates WHERE disposition IN ('counted', 'buffered')"
        " GROUP BY disposition, version ORDER BY version"
    )
    for version, updates, places, first, last in rows:
        if (places, first, last) != (updates, 0, updates - 1):
            buffer = "the open buffer" if version is None else f"version {version}"
            yield (
                f"the {updates} updates of {buffer} have {places} positions, from {first} to {last}"
            )


def updates_are_ours(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """Ids that belong to this run, client and turn or attempt, trained on something."""
    run_id = ledger.meta["run_id"]
    rows = ledger.query(
        "SELECT update_id, turn, client, base_version, examples, version FROM updates"
    )
    for update_id, turn, client, base, examples, version in rows:
        if not own_id(update_id, run_id, client, turn, base):
            yield f"update {update_id} does not belong to turn {turn} of client {client}"
        if examples < 1 and version != 0:
            yield f"update {update_id} was trained on {examples} examples"
    for table in ("failures", "dropouts"):
        for (its_id,) in ledger.query(f"SELECT assignment_id FROM {table}"):
            if not its_id.startswith(f"{run_id}:"):
                yield f"{its_id} of the {table} is none of this run"


def staleness_is_true(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """The version before minus the base version, and within what is allowed."""
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


def cohorts_count_once(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """In cohort mode a version counts a client once, and only what was trained for it."""
    if experiment.participation.mode != "cohort":
        return
    rows = ledger.query(
        "SELECT version, client, COUNT(*), MAX(staleness) FROM updates"
        " WHERE disposition = 'counted' AND version > 0 GROUP BY version, client"
    )
    for version, client, times, stalest in rows:
        if times > 1:
            yield f"version {version} counts client {client} of its cohort {times} times"
        if stalest > 0:
            yield f"version {version} counts client {client}, who trained for another version"


def clients_keep_their_distance(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """With min-separation no client counts twice within so many versions."""
    if experiment.participation.selection != "min-separation":
        return
    parameters: Mapping[str, Any] = experiment.participation.selection_parameters or {}
    least = int(parameters["separation"])
    last: dict[str, int] = {}
    rows = ledger.query(
        "SELECT client, version FROM updates WHERE version > 0 ORDER BY version, position"
    )
    for client, version in rows:
        if version - last.get(client, -least) < least:
            yield (
                f"client {client} counts in versions {last[client]} and {version}, less than "
                f"{least} apart"
            )
        last[client] = version


def residents_count_once(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """A resident client counts once for each version that it was sent."""
    rows = ledger.query(
        "SELECT client, base_version, COUNT(*) FROM updates WHERE client GLOB '*[^0-9]*'"
        " AND disposition != 'unused' GROUP BY client, base_version HAVING COUNT(*) > 1"
    )
    for client, base, times in rows:
        yield f"resident client {client} counts {times} times for training version {base}"


def waiting_updates_are_buffered(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """What waits for its place in client order is in the open buffer, and whole."""
    in_order = experiment.aggregation.deterministic
    buffered = {
        one for (one,) in ledger.query("SELECT update_id FROM updates WHERE disposition='buffered'")
    }
    waiting = dict(ledger.query("SELECT update_id, body FROM waiting"))
    for update_id, body in waiting.items():
        if update_id not in buffered:
            yield f"update {update_id} waits to be folded, but is not in the open buffer"
        if not _is_update(body, update_id):
            yield f"update {update_id} waits to be folded, but its message is damaged"
    if in_order:
        for update_id in buffered - waiting.keys():
            yield f"update {update_id} is in the open buffer, but its message is gone"
    elif waiting:
        yield f"{len(waiting)} updates wait for client order in a run that has none"


def _is_update(body: bytes, update_id: str) -> bool:
    try:
        update = decode(body)
    except DecodeError:
        return False
    return isinstance(update, ClientUpdate) and update.update_id == update_id


def rejections_have_reasons(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """A reason that there is, and at least one message."""
    for message_id, reason, times in ledger.query(
        "SELECT message_id, reason, times FROM rejections"
    ):
        if reason not in REASONS:
            yield f"message {message_id} was rejected for no known reason: {reason}"
        if times < 1:
            yield f"message {message_id} was rejected {times} times"


def evaluations_are_of_versions(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """Nobody measured a version that does not exist, or something that is no number; and what the
    strategy was told of was known by then.
    """
    latest = ledger.latest_version()
    for version, told_for in ledger.query("SELECT version, told_for FROM heard"):
        if told_for is not None and not version < told_for <= latest:
            yield f"the evaluation of version {version} took effect in version {told_for}"
    for version, worker, metrics in ledger.query(
        "SELECT version, worker, metrics FROM evaluations"
    ):
        if not 0 <= version <= latest:
            yield f"{worker} evaluated version {version}; the newest is {latest}"
        if not all(math.isfinite(value) for value in json.loads(metrics).values()):
            yield f"{worker} measured version {version} as {metrics}"
