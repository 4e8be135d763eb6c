"""Answers to a turn: the update that a training gives, the first weights, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    Evaluation,
    GlobalModel,
    Tensors,
    UserError,
)
from fluffle.schemas.errors import describe, printable
from fluffle.schemas.messages import MOST_METRIC, MOST_METRICS, metric_name, state_name
from fluffle.schemas.tensors import is_float
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.outgoing import outgoing
from fluffle.worker.services.turn import Train

if TYPE_CHECKING:
    from fluffle.worker.training.trained import LocalTrainer, Trained


@dataclass(frozen=True, slots=True)
class Account:
    """What an update says of the worker that made it."""

    worker: str
    #: The slot's time since its last turn ended, waiting included.
    slot_s: float
    #: Bytes of models received since its last update.
    received_bytes: int


def train(
    step: Train,
    trainer: LocalTrainer,
    state: Tensors | None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """The training that a step asks for. Raises: whatever the task does; TrainingStopped."""
    client, base, version = step.assignment.client, step.model.tensors, step.model.version
    if step.model.plan.stops_beyond is None or stop is None:
        return trainer.train(base, client, step.assignment.turn, step.epochs, state, version)
    return trainer.train(base, client, step.assignment.turn, step.epochs, state, version, stop)


def make_update(
    step: Train,
    trained: Trained,
    state: Tensors | None,
    account: Account,
    noise: Callable[[], np.random.Generator],
) -> tuple[ClientUpdate, Tensors]:
    """The update as it leaves, deltas or weights as the plan says, and what the client keeps.

    state, noise: as ``outgoing`` takes them.
    Raises: UserError where the training diverged, which no aggregator could use.
    """
    metrics = numbers(trained.metrics)
    _check_converges(metrics, trained.tensors)
    assignment, model = step.assignment, step.model
    local = step.as_sent(trained.tensors, model.tensors)
    update = ClientUpdate(
        run=assignment.run,
        update_id=assignment.assignment_id,
        client=assignment.client,
        turn=assignment.turn,
        base_version=model.version,
        worker=account.worker,
        sends=model.plan.sends,
        examples=trained.examples,
        metrics=_finite(metrics),
        train_s=trained.seconds,
        slot_s=account.slot_s,
        received_bytes=account.received_bytes,
        after=assignment.after,
        tensors={
            **(delta(local, model.tensors) if model.plan.sends == "delta" else local),
            **trained.extra,
        },
    )
    update, memory = outgoing(update, model.plan, state, noise)
    return update, trained.state | memory


def _check_converges(metrics: Mapping[str, float], tensors: Tensors) -> None:
    """Raises: UserError. The loss decides, and the weights: a metric may be undefined (0 / 0) on
    a client's data.
    """
    advice = "try a smaller training.learning_rate"
    if not math.isfinite(metrics.get("loss", 0.0)):
        raise UserError(f"the training diverged ({metrics}): {advice}")
    for name, array in tensors.items():
        if is_float(array) and not np.isfinite(array).all():
            raise UserError(f"the training diverged ({name} is not finite): {advice}")


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without those that are undefined on these examples."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as they travel: names of one line, and numbers, which may not be finite.

    Raises: UserError where they are none, or too many.
    """
    if len(metrics) > MOST_METRICS:
        raise UserError(f"{len(metrics)} metrics are more than {MOST_METRICS}")
    found = {}
    for key, value in metrics.items():
        name = metric_name(str(key))
        try:
            found[name] = number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"the metric {name} is {printable(type(value).__name__, 64)} and no number"
            ) from None
        if abs(number) > MOST_METRIC:
            found[name] = math.inf  # more than a message carries: it has diverged
    return found


def evaluation_of(
    model: GlobalModel, worker: str, metrics: Mapping[str, Any], examples: int, seconds: float = 0.0
) -> tuple[Evaluation, list[str]]:
    """What an evaluator sends, and the metrics that it leaves out as they are not finite.

    Raises: UserError as ``numbers`` does.
    """
    measured = numbers(metrics)
    finite = _finite(measured)
    evaluation = Evaluation(
        run=model.run,
        version=model.version,
        worker=worker,
        metrics=finite,
        examples=examples,
        seconds=seconds,
        diverged=None if math.isfinite(measured.get("loss", 0.0)) else True,
    )
    return evaluation, sorted(measured.keys() - finite.keys())


def load_state(states: ClientStates, step: Train) -> Tensors | None:
    """What the client goes on from; None where the plan keeps nothing, or it is not here."""
    if not step.model.plan.keeps_state:
        return None
    assignment = step.assignment
    return states.load(assignment.run.run_id, assignment.client, assignment.after or "")


def save_state(states: ClientStates, step: Train, kept: Tensors) -> None:
    """What a training left the client with, before anybody hears of its update."""
    if step.model.plan.keeps_state:
        assignment, after = step.assignment, step.assignment.after or ""
        name = state_name(after, assignment.turn, step.model.version)
        states.save(assignment.run.run_id, assignment.client, name, kept, after)


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
    assignment: Assignment, worker: str, base_version: int, error: BaseException
) -> ClientFailed:
    """What to say of a turn whose training raised this."""
    return ClientFailed(
        run=assignment.run,
        update_id=assignment.assignment_id,
        client=assignment.client,
        turn=assignment.turn,
        base_version=base_version,
        worker=worker,
        reason=describe(error),
    )


def payload_bytes(tensors: Tensors) -> int:
    """How much of a message is tensors: what a device's network has to carry."""
    return sum(array.nbytes for array in tensors.values())


def delta(local: Tensors, base: Tensors) -> Tensors:
    """local − base for ``trainable`` tensors; ``non_trainable`` ones travel as values."""
    return {
        name: np.asarray(np.subtract(array, base[name])) if name.startswith("trainable/") else array
        for name, array in local.items()
    }
