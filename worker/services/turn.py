"""A client's turn, written once: a generator of steps, without thread, socket or clock.

Whoever drives it does each step in its own way and sends back the reply: a slot sleeps and sends,
the simulator schedules events, a resident client goes from version to version::

    initialise ─> Initialise ─> Submit
    train ─> Fetch ─┬─ an older model than the turn's ─> Fetch again, for a newer one
                    ├─ the turn is of the past, or the driver stops ─> (end: nothing is sent)
                    └─ the model to train ─> Train ─┬─ an update ─> Pause ─> Submit
                                                    ├─ an error ──> Pause ─> Report
                                                    ├─ stopped ───> Fetch again, for a newer one
                                                    └─ nothing ───> Pause ─> (end)

    on a simulated device (``fluffle.worker.services.simulated``) the Train of above is
    Available ─> Fetch ─> Begin ─> Wait: download ─┬─> Train ─┬─> Wait: upload ─┬─> Train's reply
        └─ too late  └─ dropped                    └─ lost    └─ lost           └─ lost ─> nothing

Stopped: the plan says after how many versions a base is of no use any more (``stops_beyond``), and
each model that the coordinator publishes says so of the bases behind it. No message of its own is
needed, and none can be lost. The turn stays the same, open and unanswered: it trains the newest
model in its place (Ringmaster's Algorithm 5), or ends without an answer where it was for one
version alone. A stop is advice: a training that ends before it hears of it is answered, and then
rejected.

Whatever the replies: a turn sends one answer or none, and never one for a model that it did not
fetch; an answer is the last thing that it sends. A driver acks the assignment after the end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

from fluffle.schemas import Assignment, ClientUpdate, GlobalModel, Plan, Run, Tensors, UserError
from fluffle.schemas.messages import order
from fluffle.worker.devices import DeviceOutcome, pause_s

Verdict = Literal["train", "wait", "drop"]


@dataclass(frozen=True, slots=True)
class Initialise:
    """Build the weights of version 0. Reply: the update that has them, or the error."""

    assignment: Assignment
    plan: Plan


@dataclass(frozen=True, slots=True)
class Fetch:
    """The newest model, once there is a newer one than ``seen``. Reply: None if none will come."""

    seen: GlobalModel | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """A training's base became too old before it ended: it was given up."""


@dataclass(frozen=True, slots=True)
class Train:
    """Train the model. Reply: the update, the error or ``Stopped``; None if not ``needed``."""

    assignment: Assignment
    model: GlobalModel
    #: Fewer than the plan's, where the client is a straggler.
    epochs: int | None = None
    #: Examples -> the seconds that the training takes at least.
    takes_s: Callable[[int], float] = lambda examples: 0.0
    #: (Local values, the model's) -> the values that the client says it has.
    as_sent: Callable[[Tensors, Tensors], Tensors] = lambda local, base: local
    #: False where the update will be lost: a driver that knows the time need not train.
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Submit:
    """Send this update, which answers the turn."""

    update: ClientUpdate


@dataclass(frozen=True, slots=True)
class Report:
    """Say that the turn has failed, for a model of this version."""

    error: BaseException
    base_version: int


@dataclass(frozen=True, slots=True)
class Pause:
    """The client rests for so long once the turn is over."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Available:
    """Wait until the client's device can start. Reply: False where that is too late.

    next_start: seconds since the run began -> the first time from then on.
    """

    next_start: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Begin:
    """The device starts, with this model; what becomes of the turn is drawn."""

    model: GlobalModel
    outcome: DeviceOutcome


@dataclass(frozen=True, slots=True)
class Wait:
    """Let this time pass."""

    seconds: float


Step = Initialise | Fetch | Train | Submit | Report | Pause | Available | Begin | Wait
#: Replies are those that the steps' docstrings name; None to all others.
Turn = Generator[Step, Any, None]
#: Makes of a turn the same turn with something about it: a simulated device.
Decorator = Callable[[Turn, Assignment], Turn]


def undecorated(turn: Turn, assignment: Assignment) -> Turn:
    """The turn as it is."""
    return turn


def turn_of(assignment: Assignment) -> Turn:
    """The turn that an assignment asks for."""
    if assignment.kind == "initialise":
        if assignment.plan is None:
            yield Report(UserError("a turn that asks for the first weights brought no plan"), 0)
            return
        yield from _answer((yield Initialise(assignment, assignment.plan)), 0)
        return
    model = yield from newest_model(assignment)
    if model is None:
        return
    while isinstance(result := (yield Train(assignment, model)), Stopped):
        model = yield from newest_model(assignment, seen=model)
        if model is None:
            return
    yield Pause(pause_s(model.plan, assignment.client, assignment.turn))
    yield from _answer(result, model.version)


def _answer(result: ClientUpdate | BaseException | None, base_version: int) -> Turn:
    match result:
        case ClientUpdate():
            yield Submit(result)
        case BaseException():
            yield Report(result, base_version)


def newest_model(
    assignment: Assignment, seen: GlobalModel | None = None
) -> Generator[Step, Any, GlobalModel | None]:
    """The model to train, waiting for it where it has not come yet; None to drop the turn.

    seen: one that is not to be trained any longer.
    """
    model: GlobalModel | None = yield Fetch(seen)
    while model is not None:
        match verdict(assignment, model):
            case "train":
                return model
            case "drop":
                return None
        model = yield Fetch(seen=model)
    return None


def drive(turn: Turn, do: Callable[[Step], Any]) -> None:
    """Do a turn's steps one by one; for drivers that may block."""
    reply: Any = None
    while True:
        try:
            step = turn.send(reply)
        except StopIteration:
            return
        reply = do(step)


def verdict(assignment: Assignment, model: GlobalModel | None) -> Verdict:
    """What to do with a turn, given the newest model.

    Queues have no order between them: a turn may come before its model, or long after. Of an
    older run or epoch: drop. Of a newer one: wait for its model. In cohort mode it is for one
    version and no other; else the newest model is always right.
    """
    if model is None:
        return "wait"
    mine, newest = leadership(assignment.run), leadership(model.run)
    if mine != newest:
        return "drop" if mine < newest else "wait"
    if model.final:
        return "drop"
    if assignment.exact_version and model.version != assignment.version:
        return "drop" if assignment.version < model.version else "wait"
    return "train"


def is_too_old(base: GlobalModel, run_id: str, version: int) -> bool:
    """Whether the training of this base stops, now that there is this version of this run."""
    beyond = base.plan.stops_beyond
    return beyond is not None and run_id == base.run.run_id and version - base.version > beyond


def leadership(run: Run) -> tuple[int, int]:
    """Sorts messages by the leader that they come from."""
    return run.run_started, run.epoch


def is_newer(model: GlobalModel, seen: GlobalModel | None) -> bool:
    """Whether this is what ``Fetch(seen)`` waits for."""
    return seen is None or order(model.headers()) > order(seen.headers())
