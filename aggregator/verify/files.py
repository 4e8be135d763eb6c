"""Checks of the files beside the ledger: weights, the open buffer, kept updates.

Files that no row names are harmless: a crash between file and transaction leaves them.
"""

from __future__ import annotations

from collections.abc import Iterator

from fluffle.aggregator.ledger.archive import UPDATES
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.strategies.base import model_of
from fluffle.schemas import Experiment, UserError, tensors_sha256


def weights_are_there(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """The last versions' and the best one's are there and whole, and those that were recorded."""
    columns = "SELECT version, file, weights_sha256 FROM versions"
    keep = experiment.aggregation.keep_versions
    rows = ledger.query(f"{columns} ORDER BY version DESC LIMIT ?", keep)
    if experiment.aggregation.keep_updates and rows and rows[-1][0] > 0:
        rows += ledger.query(f"{columns} WHERE version = 0")
    if (best := ledger.best()) is not None:
        rows += ledger.query(f"{columns} WHERE version = ? AND version < ?", best[0], rows[-1][0])
    for version, name, sha256 in rows:
        try:
            state = ledger.store.read(name)
        except UserError as error:
            if not ledger.has_moved_on():
                yield f"the weights of version {version} are missing or damaged: {error}"
            continue
        if tensors_sha256(model_of(state)) != sha256:
            yield f"the weights of version {version} are not those recorded: {name}"


def open_buffer_is_there(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """The sums that a partial checkpoint recorded."""
    name = ledger.meta.get("buffer_file")
    if name and not ledger.store.intact(name) and not ledger.has_moved_on():
        yield f"the open buffer is missing or damaged: {name}"


def cache_is_there(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """What the strategy keeps for each client."""
    for name in ledger.cache_files():
        if not ledger.store.intact(name) and not ledger.has_moved_on():
            yield f"what is kept for a client is missing or damaged: {name}"


def kept_updates_are_there(ledger: LedgerReader, experiment: Experiment) -> Iterator[str]:
    """Every recorded update was kept, none lies over another, and the files are long enough."""
    if not experiment.aggregation.keep_updates:
        return
    for one, other, wrong in (
        ("updates", "kept", "is recorded, but was not kept"),
        ("kept", "updates", "was kept, but is recorded nowhere"),
    ):
        for (update_id,) in ledger.query(
            f"SELECT update_id FROM {one} WHERE update_id NOT IN (SELECT update_id FROM {other})"
        ):
            yield f"update {update_id} {wrong}"
    before, end = "", 0
    for update_id, segment, start, size in ledger.query(
        "SELECT update_id, segment, start, bytes FROM kept ORDER BY segment, start"
    ):
        if start < (end if segment == before else 0):
            yield f"kept update {update_id} lies over another in {segment} at {start}"
        before, end = segment, start + size
    for segment, end in ledger.query(
        "SELECT segment, MAX(start + bytes) FROM kept GROUP BY segment"
    ):
        path = ledger.folder / UPDATES / segment
        there = path.stat().st_size if path.is_file() else 0
        if there < end:
            yield f"kept updates are missing: {segment} has {there} of {end} bytes"
