"""Whether an update may be folded: the reasons why not, cheapest first."""

from __future__ import annotations

from collections.abc import Mapping

from schemas import ClientUpdate, Run, Tensors
from schemas.tensors import Array, spec

#: Every reason an update can be rejected for, with what it means.
REASONS: Mapping[str, str] = {
    "undecodable": "no message of ours, or damaged",
    "wrong_type": "a message of another kind than belongs on this queue",
    "unknown_run": "from another run",
    "forged": "its id, client and turn do not belong together, or it is sent in another's name",
    "wrong_kind": "weights where the strategy wants deltas, or the other way round",
    "no_examples": "trained on nothing",
    "unknown_version": "trained from a version that does not exist",
    "too_stale": "older than aggregation.max_staleness",
    "late": "not of the current cohort, or the run is over",
    "wrong_shape": "names, dtypes or shapes differ from the model's",
    "not_finite": "contains NaN, infinity or a value beyond ±1e30",
}


#: Finite values that a million updates could still add up to infinity in float32.
LIMIT = 1e30


def assignment_id(run_id: str, turn: int, client: str) -> str:
    """The id of a turn, and of the update that answers it."""
    return f"{run_id}:{turn}:{client}"


def reason_against(
    update: ClientUpdate,
    *,
    run: Run,
    sends: str,
    clients: int,
    version: int,
    max_staleness: int | None,
    model: Tensors,
) -> str | None:
    """Why this update must not be folded into a buffer at ``version``; None if it may."""
    if update.run.run_id != run.run_id:
        return "unknown_run"
    if not _own_id(update, run, clients):
        return "forged"
    if update.sends != sends:
        return "wrong_kind"
    if update.examples < 1:
        return "no_examples"
    if update.base_version > version:
        return "unknown_version"
    if max_staleness is not None and version - update.base_version > max_staleness:
        return "too_stale"
    if spec(update.tensors) != spec(model):
        return "wrong_shape"
    if not finite(update.tensors):
        return "not_finite"
    return None


def finite(tensors: Tensors) -> bool:
    """Whether every value is a number within ±``LIMIT``."""
    return all(_bounded(array) for array in tensors.values() if array.dtype.kind == "f")


def _bounded(array: Array) -> bool:
    # Comparisons with NaN are false, and min and max need no temporary of the array's size.
    return array.size == 0 or bool(array.min() > -LIMIT and array.max() < LIMIT)


def _own_id(update: ClientUpdate, run: Run, clients: int) -> bool:
    name = update.client
    known = name.isdecimal() and str(int(name)) == name and int(name) < clients
    return known and update.update_id == assignment_id(run.run_id, update.turn, update.client)
