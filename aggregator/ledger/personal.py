"""How clients' own models do, as they have said after their last counted trainings.

A client measures its model (personal layers, Ditto's) on test examples like its own
(``fluffle.worker.tasks.by_client``): ``personal_accuracy`` and ``personal_loss`` of its update.
Here are the summaries over clients, as an evaluation has them of the global model.
"""

from __future__ import annotations

import json
import math

import numpy as np

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.schemas.spread import MEASURES, spread


def personal(ledger: LedgerReader) -> dict[str, float] | None:
    """Worst, worst tenth, mean and standard deviation, and of how many ``clients``; None where the
    run has no such measurements. A client that has not been counted yet has said nothing.
    """
    experiment = json.loads(ledger.meta.get("experiment", "{}"))
    if not experiment.get("evaluation", {}).get("by_client"):
        return None
    told = [
        json.loads(text)
        for (text,) in ledger.query(
            "SELECT metrics FROM updates WHERE rowid IN (SELECT MAX(rowid) FROM updates"
            " WHERE disposition = 'counted' AND turn > 0 GROUP BY client)"
        )
    ]
    found: dict[str, float] = {}
    for name in MEASURES:
        values = np.array([m[f"personal_{name}"] for m in told if f"personal_{name}" in m], float)
        if len(values):
            found |= {**spread(name, values), "clients": len(values)}
    return {name: value for name, value in found.items() if math.isfinite(value)} or None
