"""One turn of one client: which model it is for, the training, and the update that comes of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    GlobalModel,
    Run,
    Tensors,
    UserError,
)
from fluffle.worker.devices.attack import as_sent

if TYPE_CHECKING:
    from fluffle.worker.training.trainer import Trained

Verdict = Literal["train", "wait", "drop"]


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


def leadership(run: Run) -> tuple[int, int]:
    """Sorts messages by the leader that they come from."""
    return run.run_started, run.epoch


def make_update(
    assignment: Assignment,
    model: GlobalModel,
    trained: Trained,
    worker: str,
    slot_s: float,
    received_bytes: int,
) -> ClientUpdate:
    """The update that answers a turn: deltas or weights, as the plan says.

    Raises: UserError where the training diverged, which no aggregator could use.
    """
    if not all(map(math.isfinite, trained.metrics.values())):
        raise UserError(
            f"the training diverged ({trained.metrics}): try a smaller training.learning_rate"
        )
    local = as_sent(model.plan, assignment.client, trained.tensors, model.tensors)
    return ClientUpdate(
        run=assignment.run,
        update_id=assignment.assignment_id,
        client=assignment.client,
        turn=assignment.turn,
        base_version=model.version,
        worker=worker,
        sends=model.plan.sends,
        examples=trained.examples,
        metrics=trained.metrics,
        train_s=trained.seconds,
        slot_s=slot_s,
        received_bytes=received_bytes,
        after=assignment.after,
        tensors={
            **(delta(local, model.tensors) if model.plan.sends == "delta" else local),
            **trained.extra,
        },
    )


def initial_update(assignment: Assignment, worker: str, weights: Tensors) -> ClientUpdate:
    """The answer to ``initialise``."""
    return ClientUpdate(
        run=assignment.run,
        update_id=assignment.assignment_id,
        client=assignment.client,
        turn=assignment.turn,
        base_version=0,
        worker=worker,
        sends="initial",
        examples=0,
        tensors=weights,
    )


def failed_update(
    assignment: Assignment, worker: str, base_version: int, error: Exception
) -> ClientFailed:
    """What to say of a turn whose training raised this."""
    known = isinstance(error, UserError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    return ClientFailed(
        run=assignment.run,
        update_id=assignment.assignment_id,
        client=assignment.client,
        turn=assignment.turn,
        base_version=base_version,
        worker=worker,
        reason=reason[:2000],
    )


def payload_bytes(tensors: Tensors) -> int:
    """How much of a message is tensors: what a device's network has to carry."""
    return sum(array.nbytes for array in tensors.values())


def delta(local: Tensors, base: Tensors) -> Tensors:
    """local − base for ``trainable`` tensors; ``non_trainable`` ones travel as values."""
    return {
        name: np.subtract(array, base[name]) if name.startswith("trainable/") else array
        for name, array in local.items()
    }
