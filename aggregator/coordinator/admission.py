"""Whether an update may be folded: the reasons why not, cheapest first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from fluffle.schemas import ClientFailed, ClientUpdate, Evaluation, Run, Tensors, transforms
from fluffle.schemas.messages import FromWorker, assignment_id, resident_update_id
from fluffle.schemas.steps import Step
from fluffle.schemas.tensors import Array, Spec, spec

#: Every reason an update can be rejected for, with what it means.
REASONS: Mapping[str, str] = {
    "undecodable": "no message of ours, or damaged",
    "too_large": "far longer than an update of this model can be",
    "wrong_type": "a message of another kind than belongs on this queue",
    "unknown_run": "from another run",
    "forged": "its id, client and turn do not belong together, or it is sent in another's name",
    "no_identity": "the broker does not say who sent it, and participation.identity asks for that",
    "not_allowed": "from a resident client that is not in participation.residents",
    "wrong_kind": "weights where the strategy wants deltas, or the other way round",
    "no_examples": "trained on nothing",
    "unknown_version": "trained from a version that does not exist",
    "too_stale": "older than aggregation.max_staleness",
    "superseded": "went on from a state that its client has gone on from since",
    "repeated": "from a resident client that counts for this version already, or for a later one",
    "late": "not of the current cohort, or the run is over",
    "wrong_shape": "names, dtypes or shapes differ from what the strategy wants",
    "not_finite": "contains NaN, infinity or a value beyond ±1e30",
}

#: Reasons that depend on when a message came. A recorded one stands, whatever the run does later.
OF_THEIR_TIME = ("late", "too_stale", "superseded", "repeated")

#: Finite values that a million updates could still add up to infinity in float32.
LIMIT = 1e30


def own_id(update_id: str, run_id: str, client: str, turn: int, base_version: int) -> bool:
    """Whether this id is the one that the client has for this turn or, a resident, this attempt."""
    if client.isdecimal():
        return update_id == assignment_id(run_id, turn, client)
    return turn > 0 and update_id == resident_update_id(run_id, client, base_version, turn - 1)


def reason_against_user(
    message: FromWorker, user: str | None, residents: Collection[str]
) -> str | None:
    """Why this sender, whom the broker vouches for, must not say this; None if they may.

    A resident speaks for itself alone, nobody else speaks for it, and it measures no versions.
    """
    if user is None:
        return "no_identity"
    if isinstance(message, Evaluation):
        return "forged" if user in residents else None
    concerns_residents = user in residents or message.client in residents
    return "forged" if concerns_residents and message.client != user else None


def reason_against_client(
    message: ClientUpdate | ClientFailed, run: Run, clients: int, residents: Collection[str]
) -> str | None:
    """Why nobody of this name and id takes part in the run; None if somebody does."""
    name = message.client
    pooled = name.isdecimal()
    if not pooled and name not in residents:
        return "not_allowed"
    if pooled and not (str(int(name)) == name and int(name) < clients):
        return "forged"
    theirs = own_id(message.update_id, run.run_id, name, message.turn, message.base_version)
    return None if theirs else "forged"


def reason_against(
    update: ClientUpdate,
    *,
    run: Run,
    sends: str,
    clients: int,
    residents: Collection[str],
    version: int,
    max_staleness: int | None,
    expected: Spec,
) -> str | None:
    """Why this update must not be folded into a buffer at ``version``; None if it may."""
    if update.run.run_id != run.run_id:
        return "unknown_run"
    if (reason := reason_against_client(update, run, clients, residents)) is not None:
        return reason
    if update.sends != sends:
        return "wrong_kind"
    if update.examples < 1:
        return "no_examples"
    if update.base_version > version:
        return "unknown_version"
    if max_staleness is not None and version - update.base_version > max_staleness:
        return "too_stale"
    if spec(update.tensors) != expected:
        return "wrong_shape"
    if not finite(update.tensors):
        return "not_finite"
    return None


def restored(
    update: ClientUpdate, steps: Sequence[Step], expected: Spec
) -> tuple[ClientUpdate, str | None]:
    """The update as it was before the steps that its client took, or why that cannot be made out.

    expected: names, dtypes and shapes that the strategy wants.
    """
    if not steps:
        return update, None
    try:
        tensors = transforms.restore(steps, update.tensors, expected)
    except ValueError:
        return update, "wrong_shape"
    if not finite(tensors):
        return update, "not_finite"
    return update.model_copy(update={"tensors": tensors}), None


def finite(tensors: Tensors) -> bool:
    """Whether every value is a number within ±``LIMIT``."""
    return all(_bounded(array) for array in tensors.values() if array.dtype.kind == "f")


def _bounded(array: Array) -> bool:
    # Comparisons with NaN are false, and min and max need no temporary of the array's size.
    # As Python's numbers: LIMIT itself is more than a float16 can be.
    return array.size == 0 or (float(array.min()) > -LIMIT and float(array.max()) < LIMIT)
