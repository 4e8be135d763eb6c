"""A run in numbers, from its ledger."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fluffle.aggregator.ledger import sums
from fluffle.aggregator.ledger.personal import personal
from fluffle.aggregator.ledger.privacy import privacy_of
from fluffle.aggregator.ledger.reader import LedgerReader

#: How the metrics of clients' differences begin.
CLIENT = "client_"


def summarise(ledger: LedgerReader) -> dict[str, Any]:
    """A run's summary (docs/architecture.md), but for ``peak_rss_mb``, which only the caller knows.

    ``updates_per_s`` is over the time from version 0 to the last; ``train_fraction`` is the share
    of the slots' time that went into training, over all updates that arrived.
    """
    meta = ledger.meta
    arrived = sums.sums(ledger)
    first, last, sha = _span(ledger)
    updates = sums.counted(ledger)
    evaluated, metrics = sums.newest_evaluation(ledger)
    private = privacy_of(ledger)
    travelled = sums.traffic(ledger)
    in_all = sum(travelled.values(), sums.Traffic())
    kept, kept_bytes = ledger.kept()
    return {
        "run_id": meta["run_id"],
        "status": meta["status"],
        "detail": meta.get("detail", ""),
        "versions": max(0, ledger.latest_version()),
        "updates_counted": updates,
        "updates_rejected": sums.rejected(ledger),
        "duplicates": int(meta.get("duplicates", 0)),
        "dropouts": ledger.count("dropouts"),
        "failures": sums.failures(ledger),
        "accuracy": metrics.get("accuracy"),
        "loss": metrics.get("loss"),
        "metrics": {name: value for name, value in metrics.items() if not name.startswith(CLIENT)},
        "by_client": {
            name.removeprefix(CLIENT): value
            for name, value in metrics.items()
            if name.startswith(CLIENT)
        }
        or None,
        "personal": personal(ledger),
        "evaluated_version": evaluated,
        "wall_s": round(float(meta.get("elapsed_s", 0)), 3),
        "virtual_s": None,
        "updates_per_s": round(updates / (last - first), 3) if last > first else None,
        "train_fraction": (round(arrived.train_s / arrived.slot_s, 4) if arrived.slot_s else None),
        "weights_sha256": sha,
        "bytes_up": in_all.bytes_up,
        "bytes_down": in_all.bytes_down,
        "traffic": {name: asdict(of_one) for name, of_one in travelled.items()},
        "kept_updates": kept,
        "kept_bytes": kept_bytes,
        "epsilon": private and private["epsilon"],
        "privacy": private,
    }


def _span(ledger: LedgerReader) -> tuple[float, float, str | None]:
    """When version 0 and the last version were made (seconds into the run), and its hash."""
    rows = ledger.query(
        "SELECT elapsed_s, weights_sha256 FROM versions"
        " WHERE version IN (0, (SELECT MAX(version) FROM versions)) ORDER BY version"
    )
    if not rows:
        return 0.0, 0.0, None
    return rows[0][0], rows[-1][0], rows[-1][1]
