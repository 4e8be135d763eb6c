"""``fluffle verify``: a run's ledger and files against the invariants (docs/architecture.md)."""

from __future__ import annotations

import sqlite3

from fluffle.aggregator.ledger.reader import DamagedLedger, LedgerReader
from fluffle.aggregator.verify.checks import (
    Check,
    clients_keep_their_distance,
    cohorts_count_once,
    evaluations_are_of_versions,
    file_is_whole,
    rejections_have_reasons,
    residents_count_once,
    run_is_known,
    staleness_is_true,
    updates_are_ours,
    updates_have_one_disposition,
    updates_have_their_places,
    versions_are_contiguous,
    versions_say_what_they_are_made_of,
    waiting_updates_are_buffered,
)
from fluffle.aggregator.verify.files import (
    cache_is_there,
    kept_updates_are_there,
    open_buffer_is_there,
    weights_are_there,
)
from fluffle.aggregator.verify.replay import Replayed, replay
from fluffle.schemas import Experiment
from fluffle.schemas.errors import describe

__all__ = ["CHECKS", "Replayed", "replay", "verify"]

#: What a later check finds may follow from what an earlier one found.
CHECKS: tuple[Check, ...] = (
    file_is_whole,
    run_is_known,
    versions_are_contiguous,
    updates_have_one_disposition,
    versions_say_what_they_are_made_of,
    updates_have_their_places,
    updates_are_ours,
    staleness_is_true,
    cohorts_count_once,
    clients_keep_their_distance,
    residents_count_once,
    waiting_updates_are_buffered,
    rejections_have_reasons,
    evaluations_are_of_versions,
    weights_are_there,
    open_buffer_is_there,
    cache_is_there,
    kept_updates_are_there,
)


def verify(ledger: LedgerReader) -> list[str]:
    """What is wrong, a line each with its evidence; nothing if all is well."""
    found: list[str] = []
    try:
        experiment = Experiment.stored(ledger.meta["experiment"])
        for check in CHECKS:
            found += check(ledger, experiment)
    except (DamagedLedger, sqlite3.DatabaseError) as error:
        found.append(f"ledger.sqlite is damaged: {error}")
    except (KeyError, TypeError, ValueError) as error:
        found.append(f"ledger.sqlite holds what no aggregator writes: {describe(error, 400)}")
    return found
