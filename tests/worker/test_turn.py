"""What a worker does with a turn, given the newest model: every row of the protocol."""

from __future__ import annotations

import numpy as np
import pytest

from fluffle.schemas import Assignment, Experiment, GlobalModel, Plan, Run
from fluffle.worker.services.turn import delta, verdict


def run(started: int = 10, epoch: int = 2) -> Run:
    return Run(run_id=f"run-{started}", run_started=started, epoch=epoch)


def turn(run: Run, version: int = 5, exact: bool = False) -> Assignment:
    return Assignment(
        run=run,
        assignment_id="a",
        client="0",
        turn=1,
        version=version,
        exact_version=exact,
    )


def model(run: Run, version: int = 5, final: bool = False) -> GlobalModel:
    plan = Plan.of(Experiment(), "delta")
    return GlobalModel(run=run, version=version, final=final, plan=plan, tensors={})


@pytest.mark.parametrize(
    ("assignment", "newest", "expected"),
    [
        # Before any model has come there is nothing to train.
        (turn(run()), None, "wait"),
        # The newest model of the same leader is right, whatever its version.
        (turn(run()), model(run()), "train"),
        (turn(run()), model(run(), 9), "train"),
        (turn(run()), model(run(), 3), "train"),
        # In cohort mode a turn is for one version and no other.
        (turn(run(), exact=True), model(run(), 5), "train"),
        (turn(run(), exact=True), model(run(), 6), "drop"),
        (turn(run(), exact=True), model(run(), 4), "wait"),
        # A turn of an older run or epoch is of the past, of a newer one its model is on its way.
        (turn(run(epoch=1)), model(run(epoch=2)), "drop"),
        (turn(run(epoch=3)), model(run(epoch=2)), "wait"),
        (turn(run(9, 7)), model(run(10, 1)), "drop"),
        (turn(run(11, 1)), model(run(10, 7)), "wait"),
        # A run that is over needs no more updates.
        (turn(run()), model(run(), final=True), "drop"),
        (turn(run(11)), model(run(10), final=True), "wait"),
    ],
)
def test_verdict(assignment: Assignment, newest: GlobalModel | None, expected: str) -> None:
    assert verdict(assignment, newest) == expected


def test_only_trainable_tensors_travel_as_deltas() -> None:
    base = {"trainable/0": np.full(3, 1.0, np.float32), "non_trainable/0": np.ones(2, np.float32)}
    local = {"trainable/0": np.full(3, 4.0, np.float32), "non_trainable/0": np.zeros(2, np.float32)}
    update = delta(local, base)
    assert update["trainable/0"].tolist() == [3, 3, 3]
    assert update["trainable/0"].dtype == np.float32
    assert update["non_trainable/0"].tolist() == [0, 0]
