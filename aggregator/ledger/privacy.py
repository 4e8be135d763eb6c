"""Privacy spent in a run with ``[privacy]``: epsilon of any one client, by version.

A version adds N(0, (z C)^2) to a sum that no update moves by more than C. Of a client with m_v
updates in version v (two are possible where turns overlap) that sum tells as much as Gaussian noise
of z / m_v, and all versions together as much as one of z / sqrt(sum_v m_v^2): Gaussian mechanisms
add up exactly. Reported is the client who took part most; the others are better off.

Nothing is claimed for the chance of not having been chosen. Amplification by sampling needs a
choice that nobody can know; here it is a function of a seed that travels with the model, and
asynchronous participation follows speed, not chance.

Neighbouring runs differ in one client's updates, which are replaced by zero, while the *schedule*
(who is in which version, and how often) is the same: zero-out adjacency (Kairouz et al. 2021, arXiv
2103.00039, definition 1.1). It is no statement about a client that is absent: a buffer closes with
its quorum, so without one client all later versions have other members. Hence the schedule must not
depend on anybody's data; ``caveats`` says what in a run may have made it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from math import sqrt
from typing import Any

from fluffle.aggregator.ledger import sums
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.schemas import Experiment, UserError

#: Which runs are neighbours, wherever epsilon is shown.
ADJACENCY = "one client's updates replaced by zero; the schedule must not depend on data"

INITIAL_CAVEAT = (
    "version 0 came from --initial: what that was trained on is not counted; if it came from a "
    "private run, epsilons add up"
)


def privacy_of(ledger: LedgerReader) -> dict[str, Any] | None:
    """What a summary says of privacy; None without ``[privacy]``.

    ``epsilon`` is what the run has revealed of any one client, None where the accounting library is
    not installed.
    """
    table = Experiment.stored(ledger.meta["experiment"]).privacy
    if table is None:
        return None
    try:
        spent = epsilons(ledger)
    except UserError:  # looked at on a machine without it
        spent = []
    return {
        "epsilon": round(spent[-1][1], 4) if spent else None,
        "delta": table.delta,
        "adjacency": ADJACENCY,
        "caveats": caveats(ledger),
    }


def caveats(ledger: LedgerReader) -> list[str]:
    """What in this run may have broken what epsilon stands on, each in a line."""
    experiment = Experiment.stored(ledger.meta["experiment"])
    found = []
    if ledger.latest_version() >= 0 and not ledger.count("updates WHERE version = 0"):
        found.append(INITIAL_CAVEAT)
    if failed := sums.failures(ledger):
        found.append(
            f"{failed} trainings failed and others took their turns: a training that diverges "
            "depends on its client's data, and so does the schedule then"
        )
    late = ledger.count("versions WHERE closed_by = 'deadline'")
    dropouts = ledger.count("dropouts")
    if late or dropouts:
        found.append(
            f"{late} versions were closed by the deadline and {dropouts} turns were overdue: if "
            "durations depend on data, so does the schedule"
        )
    if experiment.participation.mode == "concurrent" or experiment.participation.over_selection > 1:
        found.append(
            "who is in a version follows from how fast clients are: if durations depend on data (a "
            "client's number of examples does), so does the schedule"
        )
    return found


def new_key(experiment: Experiment, clock: str) -> str:
    """The secret that a run's noise is made from: 32 hexadecimal digits.

    Under the virtual clock a function of the seed: a simulation can be repeated, and hides nothing.
    """
    if clock == "virtual":
        text = f"noise:{experiment.experiment.seed}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]
    return secrets.token_hex(16)


def epsilons(ledger: LedgerReader) -> list[tuple[int, float]]:
    """(version, epsilon after it) of a run, version 0 left out; empty without ``[privacy]``.

    Raises: UserError where dp-accounting is not installed.
    """
    table = Experiment.stored(ledger.meta["experiment"]).privacy
    if table is None:
        return []
    rows = ledger.query(
        "SELECT version, client, COUNT(*) FROM updates WHERE disposition = 'counted'"
        " AND version > 0 GROUP BY version, client ORDER BY version"
    )
    squares: Counter[str] = Counter()
    most: dict[int, int] = {}
    largest = 0
    for version, client, times in rows:
        squares[client] += times * times
        largest = max(largest, squares[client])
        most[version] = largest
    known: dict[int, float] = {0: 0.0}
    found, largest = [], 0
    for version in range(1, ledger.latest_version() + 1):
        largest = most.get(version, largest)
        if largest not in known:
            known[largest] = epsilon(table.noise_multiplier / sqrt(largest), table.delta)
        found.append((version, known[largest]))
    return found


def epsilon(noise_multiplier: float, delta: float) -> float:
    """The epsilon of one Gaussian mechanism with sensitivity 1. Raises: UserError."""
    accounting = require_accounting()
    accountant = accounting.rdp.RdpAccountant()
    accountant.compose(accounting.GaussianDpEvent(noise_multiplier))
    return float(accountant.get_epsilon(delta))


def require_accounting() -> Any:
    """The accounting library. Raises: UserError where it is not installed."""
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ImportError as error:
        raise UserError(
            "[privacy] needs dp-accounting, which is not installed: pip install 'fluffle[privacy]'"
        ) from error
    return dp_accounting
