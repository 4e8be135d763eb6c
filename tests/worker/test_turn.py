"""A client's turn: every row of the protocol, and what holds whatever its driver replies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluffle.schemas import Assignment, ClientUpdate, Experiment, GlobalModel, Plan, Run
from fluffle.worker.services.answers import delta
from fluffle.worker.services.simulated import SimulatedDevices
from fluffle.worker.services.turn import (
    Available,
    Begin,
    Fetch,
    Initialise,
    Pause,
    Report,
    Step,
    Submit,
    Train,
    Wait,
    drive,
    turn_of,
    verdict,
)


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


class Script:
    """A driver that does nothing: it notes the steps, and replies with what it is given."""

    def __init__(self, models: list[GlobalModel | None], result: Any, in_time: bool = True) -> None:
        self.steps: list[Step] = []
        self._models = models
        self._result = result
        self._in_time = in_time

    def __call__(self, step: Step) -> Any:
        self.steps.append(step)
        match step:
            case Fetch():
                return self._models.pop(0) if self._models else None
            case Available():
                return self._in_time
            case Train(needed=False):
                return None
            case Train() | Initialise():
                return self._result
        return None

    def kinds(self) -> list[type[Step]]:
        return [type(step) for step in self.steps]


def update(turn: Assignment) -> ClientUpdate:
    return ClientUpdate(
        run=turn.run,
        update_id=turn.assignment_id,
        client=turn.client,
        turn=turn.turn,
        base_version=turn.version,
        worker="w",
        sends="delta",
        examples=1,
        tensors={"trainable/0": np.zeros(2, np.float32)},
    )


def test_a_turn_waits_for_its_model_trains_and_submits() -> None:
    # Given a turn whose model comes after an older one
    mine, older, right = turn(run(epoch=3)), model(run(epoch=2)), model(run(epoch=3))
    script = Script([older, right], answer := update(mine))
    # When it is driven
    drive(turn_of(mine), script)
    # Then it asks for a newer one, trains that and submits what came of it
    assert script.kinds() == [Fetch, Fetch, Train, Pause, Submit]
    assert script.steps[1] == Fetch(seen=older)
    assert script.steps[2].model is right  # type: ignore[union-attr]
    assert script.steps[-1] == Submit(answer)


def test_a_turn_whose_training_fails_says_so() -> None:
    error = ValueError("no")
    script = Script([model(run(), 7)], error)
    drive(turn_of(turn(run())), script)
    assert script.steps[-1] == Report(error, 7)


def test_a_turn_of_the_past_is_dropped_and_so_is_one_whose_driver_stops() -> None:
    for models in ([model(run(), final=True)], [None]):
        script = Script(list(models), None)
        drive(turn_of(turn(run())), script)
        assert script.kinds() == [Fetch]


def test_first_weights_are_built_from_the_plan_that_the_turn_brings() -> None:
    plan = Plan.of(Experiment(), "delta")
    mine = Assignment.to_initialise(run(), plan)
    script = Script([], answer := update(mine))
    drive(turn_of(mine), script)
    assert script.steps == [Initialise(mine, plan), Submit(answer)]
    # And one that brought none is a failure, not the end of a worker
    script = Script([], None)
    drive(turn_of(mine.model_copy(update={"plan": None})), script)
    assert script.kinds() == [Report]


MODELS = st.one_of(
    st.none(),
    st.builds(
        model,
        st.builds(run, st.sampled_from([9, 10, 11]), st.sampled_from([1, 2, 3])),
        st.integers(4, 6),
        st.booleans(),
    ),
)


@given(
    models=st.lists(MODELS, max_size=5),
    fails=st.booleans(),
    exact=st.booleans(),
    in_time=st.booleans(),
    simulated=st.booleans(),
    number=st.integers(1, 50),
    dropout=st.sampled_from([0.0, 0.9]),
)
def test_whatever_the_replies_a_turn_sends_at_most_one_answer_for_a_model_that_it_fetched(
    models: list[GlobalModel | None],
    fails: bool,
    exact: bool,
    in_time: bool,
    simulated: bool,
    number: int,
    dropout: float,
) -> None:
    # Given any turn, with or without a device, and a driver with any models and any training
    devices = {"dropout": dropout, "latency_s": 1.0}
    plan = Plan.of(Experiment.model_validate({"devices": devices}), "delta")
    models = [m and m.model_copy(update={"plan": plan}) for m in models]
    given = list(models)
    mine = turn(run(), exact=exact).model_copy(update={"turn": number})
    script = Script(models, ValueError("no") if fails else update(mine), in_time)
    # When it is driven to its end
    turns = turn_of(mine)
    drive(SimulatedDevices()(turns, mine) if simulated else turns, script)
    # Then it has trained at most once, for a fetched model that is the turn's
    trained = [step for step in script.steps if isinstance(step, Train)]
    assert len(trained) <= 1
    for step in trained:
        assert any(step.model is m for m in given)
        assert verdict(mine, step.model) == "train"
    # And it has one answer at most: the last step, after a training that was needed
    answers = [step for step in script.steps if isinstance(step, Submit | Report)]
    assert answers == [step for step in script.steps[-1:] if isinstance(step, Submit | Report)]
    if answers:
        assert trained[0].needed
        assert isinstance(answers[0], Report if fails else Submit)
    # And where nothing was lost, dropped or late, it has one
    assert bool(answers) == any(step.needed for step in trained)
    # And times are those of a device that began
    if any(isinstance(step, Wait) for step in script.steps):
        assert Begin in script.kinds()
        assert simulated
