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
import json
import logging
import secrets
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from fluffle.aggregator.ledger import sums
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.mechanisms.base import Sensitivity
from fluffle.aggregator.mechanisms.noise import KEY_BYTES, NoiseSource, from_seed, from_system
from fluffle.aggregator.mechanisms.registry import column_of
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
    if experiment.samples_secretly:
        found.append(
            "epsilon counts on nobody knowing who was chosen: it holds against who sees models, "
            "and not against workers and the broker, who see turns"
        )
    if experiment.participation.selection not in ("uniform", "min-separation"):
        found.append(
            f"clients are chosen by {experiment.participation.selection}: if that looks at what "
            "came of their data, the schedule depends on it"
        )
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
    clipped = ("too_long", "not_finite", "too_many_examples")
    if refused := sum(n for reason, n in sums.rejected(ledger).items() if reason in clipped):
        found.append(
            f"{refused} updates were rejected for what was in them: the schedule depended on data "
            "(admission.norm_factor = 0 leaves long updates to clipping)"
        )
    if experiment.participation.mode == "concurrent" or experiment.participation.over_selection > 1:
        found.append(
            "who is in a version follows from how fast clients are: if durations depend on data (a "
            "client's number of examples does), so does the schedule"
        )
    return found


def new_secrets(experiment: Experiment, clock: str, code: Path | None = None) -> dict[str, str]:
    """What a run with ``[privacy]`` begins with, for its ledger. Raises: UserError.

    noise_column: how noise is correlated. noise_seed: what it is made from, where it can be made
    again; sampling_key: what cohorts are drawn by. Under the virtual clock both are functions of
    the seed: a simulation can be repeated, and hides nothing.
    """
    table = experiment.privacy
    assert table is not None
    found = {"noise_column": json.dumps(column_of(experiment, code))}
    wanted = {
        "noise_seed": clock == "virtual" or table.noise == "seeded",
        "sampling_key": experiment.samples_secretly,
    }
    for name in (name for name, needed in wanted.items() if needed):
        text = f"{name}:{experiment.experiment.seed}"
        virtual = hashlib.sha256(text.encode()).hexdigest()
        found[name] = virtual if clock == "virtual" else secrets.token_hex(KEY_BYTES)
    return found


def noise_of(meta: Mapping[str, str], again: bool = False) -> tuple[NoiseSource, tuple[float, ...]]:
    """Where a run's noise comes from, and its column.

    again: it has to be the noise that the run has had. Raises: UserError.
    """
    if "noise_key" in meta:
        raise UserError(
            "this private run was begun by an earlier version of Fluffle, whose noise came from "
            "another generator: use that version for it"
        )
    column = _column(meta)
    if "noise_seed" in meta:
        return from_seed(bytes.fromhex(meta["noise_seed"])), column
    if again and "noise_column" in meta:
        raise UserError(
            "the noise of this private run came from the operating system and is kept nowhere, so "
            "its versions cannot be recomputed: privacy.noise = 'seeded' is for runs that can"
        )
    return from_system(), column


def _column(meta: Mapping[str, str]) -> tuple[float, ...]:
    return tuple(json.loads(meta.get("noise_column", "[1.0]")))


def epsilons(ledger: LedgerReader) -> list[tuple[int, float]]:
    """(version, epsilon after it) of a run, version 0 left out; empty without ``[privacy]``.

    Raises: UserError where dp-accounting is not installed.
    """
    experiment = Experiment.stored(ledger.meta["experiment"])
    table = experiment.privacy
    if table is None:
        return []
    rows = ledger.query(
        "SELECT version, client, COUNT(*) FROM updates WHERE disposition = 'counted'"
        " AND version > 0 GROUP BY version, client ORDER BY version"
    )
    if table.sampling is not None:
        return _sampled(experiment, ledger.latest_version())
    sensitivity = Sensitivity(_column(ledger.meta))
    most: dict[int, float] = {}
    largest = 0.0
    for version, client, times in rows:
        largest = max(largest, sensitivity.add(client, version, times))
        most[version] = largest
    known: dict[float, float] = {0.0: 0.0}
    found, largest = [], 0.0
    for version in range(1, ledger.latest_version() + 1):
        largest = most.get(version, largest)
        if largest not in known:
            known[largest] = epsilon(table.noise_multiplier / sqrt(largest), table.delta)
        found.append((version, known[largest]))
    return found


def _sampled(experiment: Experiment, versions: int) -> list[tuple[int, float]]:
    """Of Poisson sampling: every version may have had every client, with the same probability."""
    table, accounting = experiment.privacy, require_accounting()
    assert table is not None
    event = accounting.PoissonSampledDpEvent(
        experiment.participation.sampling_rate,
        accounting.GaussianDpEvent(table.noise_multiplier),
    )
    accountant, log = accounting.rdp.RdpAccountant(), logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells of each order of Rényi's that it leaves out
    try:
        accountant.compose(event)
    finally:
        log.setLevel(level)
    orders, of_one = np.array(accountant.orders), np.array(accountant.rdp)
    epsilons = (
        accounting.rdp.compute_epsilon(orders, of_one * version, table.delta)[0]
        for version in range(1, versions + 1)
    )
    return [(version, float(value)) for version, value in enumerate(epsilons, 1)]


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
