"""Admission: whether a message may count. One list of checks for each kind, in their order.

A check is a name and a predicate that is true of what must not pass; the first that is true gives
the reason. The cheap ones come first, those that read every value last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fluffle.aggregator.coordinator.turns import Turns
from fluffle.schemas import (
    ClientFailed,
    ClientUpdate,
    Evaluation,
    Run,
    Tensors,
    UserError,
    transforms,
)
from fluffle.schemas.messages import INITIALISE, FromWorker, assignment_id, resident_update_id
from fluffle.schemas.steps import Step
from fluffle.schemas.tensors import Array, Spec, is_float, spec

#: Every reason a message can be rejected for, with what it means.
REASONS: Mapping[str, str] = {
    "undecodable": "no message of ours, or damaged",
    "too_large": "far longer than an update of this model can be",
    "wrong_type": "a message of another kind than belongs on this queue",
    "unknown_run": "from another run",
    "forged": "its id, client and turn do not belong together, or it is sent in another's name",
    "no_identity": "the broker does not say who sent it, and participation.identity asks for that",
    "not_allowed": "from a resident client that is not in participation.residents",
    "wrong_kind": "weights where the strategy wants deltas, or the other way round",
    "no_model": "first weights that no model has: names, dtypes or sizes, or nothing to train",
    "no_examples": "trained on nothing",
    "too_many_examples": "claims more than admission.max_examples, or far more than all others",
    "unknown_version": "trained from a version that does not exist",
    "too_stale": "older than aggregation.max_staleness",
    "superseded": "went on from a state that its client has gone on from since",
    "repeated": "from a resident client that counts for this version already, or for a later one",
    "in_buffer": "its client is in the open buffer, where secure_aggregation has each once",
    "too_soon": "its client counts in a version that is too close, for participation.selection",
    "late": "not of the current cohort, or the run is over",
    "wrong_shape": "names, dtypes or shapes differ from what the strategy wants",
    "evaluated": "measures a version that many others have measured",
    "too_long": "far longer than what the last versions count (admission.norm_factor)",
    "not_finite": "contains NaN, infinity or a value beyond ±1e30",
}

#: Reasons that depend on when a message came. A recorded one stands, whatever the run does later.
OF_THEIR_TIME = ("late", "too_stale", "superseded", "repeated", "in_buffer", "too_soon")

#: Finite values that a million updates could still add up to infinity in float32.
LIMIT = 1e30

#: One part after the group: a strategy adds parts of its own, and a name has four at most.
_MODEL_NAME = re.compile(r"(trainable|non_trainable)(/[A-Za-z0-9_.-]{1,100}){1,8}")


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a whole run."""

    run: Run
    #: "delta" or "weights", as the strategy wants.
    sends: str
    #: How many pooled clients there are, and the names of the residents.
    clients: int
    residents: Collection[str]
    max_staleness: int | None
    #: What clients do to an update before it leaves.
    steps: Sequence[Step]


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the run stands when an update comes."""

    version: int
    #: False once the run is ending.
    running: bool
    #: What the strategy wants: names, dtypes, shapes.
    expected: Spec
    turns: Turns
    #: Of each resident, the newest version that a folded update of its was trained from.
    residents: Mapping[str, int]
    #: That an update may claim.
    most_examples: float


_OfUpdate = Callable[[ClientUpdate, Rules, Moment], bool]

UPDATE_CHECKS: Sequence[tuple[str, _OfUpdate]] = (
    ("unknown_run", lambda u, rules, _: u.run.run_id != rules.run.run_id),
    ("not_allowed", lambda u, rules, _: _is_stranger(u, rules)),
    ("forged", lambda u, rules, _: not _is_itself(u, rules)),
    ("wrong_kind", lambda u, rules, _: u.sends != rules.sends),
    ("no_examples", lambda u, *_: u.examples < 1),
    ("too_many_examples", lambda u, _, now: u.examples > now.most_examples),
    ("unknown_version", lambda u, _, now: u.base_version > now.version),
    ("too_stale", lambda u, rules, now: _is_too_stale(u, rules, now)),
    ("wrong_shape", lambda u, rules, now: _spec_differs(u, rules, now)),
    ("not_finite", lambda u, *_: not finite(u.tensors)),
    ("late", lambda u, _, now: not (now.running and now.turns.in_time(u, now.version))),
    ("superseded", lambda u, _, now: now.turns.superseded(u)),
    ("repeated", lambda u, _, now: u.base_version <= now.residents.get(u.client, -1)),
    ("in_buffer", lambda u, _, now: now.turns.has_its_sum(u)),
    ("too_soon", lambda u, _, now: now.turns.too_soon(u, now.version)),
)

INITIAL_CHECKS: Sequence[tuple[str, Callable[[ClientUpdate, Rules], bool]]] = (
    ("unknown_run", lambda u, rules: u.run.run_id != rules.run.run_id),
    ("forged", lambda u, rules: not _answers_initialise(u, rules)),
    ("wrong_kind", lambda u, _: u.sends != "initial" or not u.tensors),
    ("no_model", lambda u, _: not is_model(u.tensors)),
    ("not_finite", lambda u, _: not finite(u.tensors)),
)
#: Those of ``INITIAL_CHECKS`` that tell of a model with which no run can begin.
OF_THE_MODEL = ("wrong_kind", "no_model", "not_finite")

FAILURE_CHECKS: Sequence[tuple[str, Callable[[ClientFailed, Rules], bool]]] = (
    ("unknown_run", lambda f, rules: f.run.run_id != rules.run.run_id),
    ("not_allowed", lambda f, rules: _is_stranger(f, rules)),
    ("forged", lambda f, rules: not _is_itself(f, rules)),
)

EVALUATION_CHECKS: Sequence[tuple[str, Callable[[Evaluation, Run, int], bool]]] = (
    ("unknown_run", lambda e, run, _: e.run.run_id != run.run_id),
    ("unknown_version", lambda e, _, version: e.version > version),
)

#: Of a sender whom the broker vouches for (None: it does not), and the residents.
SENDER_CHECKS: Sequence[tuple[str, Callable[[FromWorker, str | None, Collection[str]], bool]]] = (
    ("no_identity", lambda _, user, __: user is None),
    ("forged", lambda message, user, residents: _in_anothers_name(message, user, residents)),
)


def first_reason(checks: Iterable[tuple[str, Callable[..., bool]]], *of: object) -> str | None:
    """The name of the first check that is true ``of`` these; None if none is."""
    return next((name for name, is_true in checks if is_true(*of)), None)


def own_id(update_id: str, run_id: str, client: str, turn: int, base_version: int) -> bool:
    """Whether this id is the one that the client has for this turn or, a resident, this attempt."""
    if client.isdecimal():
        return update_id == assignment_id(run_id, turn, client)
    return turn > 0 and update_id == resident_update_id(run_id, client, base_version, turn - 1)


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
    return all(_bounded(array) for array in tensors.values() if is_float(array))


def is_model(tensors: Tensors) -> bool:
    """Whether these can be a model's weights: names of the two groups, and something to train."""
    return all(_MODEL_NAME.fullmatch(key) for key in tensors) and any(
        key.startswith("trainable/") and array.size > 0 and is_float(array)
        for key, array in tensors.items()
    )


def check_initial(tensors: Tensors) -> None:
    """Raises: UserError where these cannot be the weights of version 0."""
    if not (is_model(tensors) and finite(tensors)):
        raise UserError(
            "--initial: these are no weights of a model: names trainable/… and non_trainable/…, at "
            "least one of the former, finite numbers, nothing empty"
        )


def _bounded(array: Array) -> bool:
    # Comparisons with NaN are false, and min and max need no temporary of the array's size.
    # As Python's numbers: LIMIT itself is more than a float16 can be.
    with np.errstate(invalid="ignore"):  # bfloat16 warns of NaN, where others do not
        return array.size == 0 or (float(array.min()) > -LIMIT and float(array.max()) < LIMIT)


def _is_stranger(message: ClientUpdate | ClientFailed, rules: Rules) -> bool:
    return not message.client.isdecimal() and message.client not in rules.residents


def _is_itself(message: ClientUpdate | ClientFailed, rules: Rules) -> bool:
    """Whether there is a client of this name, and the id is one of its own."""
    name = message.client
    if name.isdecimal() and not (str(int(name)) == name and int(name) < rules.clients):
        return False
    return own_id(message.update_id, rules.run.run_id, name, message.turn, message.base_version)


def _is_too_stale(update: ClientUpdate, rules: Rules, now: Moment) -> bool:
    staleness = now.version - update.base_version
    return rules.max_staleness is not None and staleness > rules.max_staleness


def _spec_differs(update: ClientUpdate, rules: Rules, now: Moment) -> bool:
    return spec(update.tensors) != transforms.sent_spec(rules.steps, now.expected)


def _answers_initialise(update: ClientUpdate, rules: Rules) -> bool:
    asked = (assignment_id(rules.run.run_id, INITIALISE, "0"), INITIALISE, "0")
    return (update.update_id, update.turn, update.client) == asked


def _in_anothers_name(message: FromWorker, user: str | None, residents: Collection[str]) -> bool:
    """A resident speaks for itself alone, nobody else speaks for it, and it measures nothing."""
    if isinstance(message, Evaluation):
        return user in residents
    concerns_residents = user in residents or message.client in residents
    return concerns_residents and message.client != user
