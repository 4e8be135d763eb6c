"""The coordinator's rules, one test each (docs/architecture.md). No I/O: effects are looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.coordinator.coordinator import Coordinator
from fluffle.aggregator.coordinator.effects import (
    Assign,
    CallAt,
    Checkpoint,
    Duplicate,
    Effect,
    Finish,
    Hold,
    MakeVersion,
    Publish,
    RecordDropouts,
    RecordEvaluation,
    RecordFailure,
    Reject,
    SaveBuffer,
)
from fluffle.aggregator.coordinator.timers import FINAL_AGAIN_S, FINAL_WAIT_S
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    Evaluation,
    Experiment,
    Run,
    Tensors,
)
from fluffle.schemas.messages import state_name

RUN = Run(run_id="run", run_started=1, epoch=1)


def weights(value: float = 0.0) -> Tensors:
    return {
        "trainable/0": np.full((2, 3), value, np.float32),
        "non_trainable/0": np.full(3, 1.0, np.float32),
    }


class Driver:
    """A coordinator, its clock, and what its effects asked for."""

    def __init__(self, initial: bool = True, checkpoint: Checkpoint | None = None, **tables: Any):
        tables.setdefault("task", {"clients": 6})
        tables.setdefault("evaluation", {"every_updates": 0})
        self.experiment = Experiment.model_validate(tables)
        self.now = 100.0
        self.open: dict[str, Assignment] = {}
        self.log: list[Effect] = []
        self.coordinator = Coordinator(
            self.experiment, make_strategy(self.experiment), RUN, checkpoint or Checkpoint(), 4
        )
        fresh = checkpoint is None or checkpoint.state is None
        self.take(self.coordinator.start(self.now, weights() if initial and fresh else None))

    def take(self, effects: list[Effect]) -> list[Effect]:
        self.log += effects
        for effect in effects:
            if isinstance(effect, Assign):
                self.open.update({a.assignment_id: a for a in effect.assignments})
        return effects

    def turn(self) -> Assignment:
        """An open assignment, the oldest first."""
        return self.open.pop(next(iter(self.open)))

    def update(self, to: Assignment | None = None, **changes: Any) -> ClientUpdate:
        turn = to or self.turn()
        fields: dict[str, Any] = {
            "run": RUN,
            "update_id": turn.assignment_id,
            "client": turn.client,
            "turn": turn.turn,
            "base_version": self.coordinator.version,
            "worker": "w",
            "sends": make_strategy(self.experiment).sends,
            "examples": 10,
            "tensors": weights(1.0),
        }
        return ClientUpdate(**{**fields, **changes})

    def give(self, update: Any = None, seen_in: Any = None, **changes: Any) -> list[Effect]:
        update = update or self.update(**changes)
        return self.take(self.coordinator.on_update(update, seen_in, self.now))

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.take(self.coordinator.on_timer(self.now))

    def assigned(self, effects: list[Effect]) -> list[Assignment]:
        return [a for e in effects if isinstance(e, Assign) for a in e.assignments]


def only(kind: type, effects: list[Effect]) -> Any:
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def none(kind: type, effects: list[Effect]) -> bool:
    return not any(isinstance(effect, kind) for effect in effects)


# ---- version 0


def test_without_weights_it_asks_a_worker_for_them_and_makes_version_0() -> None:
    # Given a run without weights
    driver = Driver(initial=False)
    ask = driver.turn()
    assert (ask.kind, ask.plan is not None, driver.open) == ("initialise", True, {})
    # When a worker answers
    effects = driver.give(to=ask, sends="initial", examples=0)
    # Then it is held, version 0 is recorded before it is published, and turns go out
    kinds = [type(effect) for effect in effects]
    assert kinds == [Hold, MakeVersion, Publish, Assign, CallAt]
    assert only(MakeVersion, effects).version == 0
    assert len(driver.open) == 6


def test_a_second_answer_to_initialise_is_a_duplicate_and_its_repeat_asks_the_same_turn() -> None:
    driver = Driver(initial=False, participation={"assignment_deadline_s": 5})
    first = driver.turn()
    again = driver.assigned(driver.wait(6))[0]
    assert again.assignment_id == first.assignment_id
    driver.give(to=first, sends="initial", examples=0)
    effects = driver.give(to=again, seen_in="ledger", sends="initial", examples=0)
    only(Duplicate, effects)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sends": "delta"}, "wrong_kind"),
        ({"tensors": {}}, "wrong_kind"),
        ({"tensors": weights(float("nan"))}, "not_finite"),
        ({"run": Run(run_id="other", run_started=1, epoch=1)}, "unknown_run"),
        ({"client": "1"}, "forged"),
    ],
)
def test_bad_initial_weights_are_rejected(changes: dict[str, Any], reason: str) -> None:
    driver = Driver(initial=False)
    ask = driver.turn()
    effects = driver.give(to=ask, **{"sends": "initial", **changes})
    assert only(Reject, effects).reason == reason
    assert driver.coordinator.phase == "initialising"


# ---- quorum and turns, concurrent


def test_the_quorum_closes_the_buffer_and_every_arrival_opens_a_new_turn() -> None:
    driver = Driver(aggregation={"quorum": 3})
    for _ in range(2):
        effects = driver.give()
        assert none(MakeVersion, effects)
        assert len(driver.assigned(effects)) == 1
    effects = driver.give()
    made = only(MakeVersion, effects)
    assert (made.version, made.closed_by, len(made.folds)) == (1, "quorum", 3)
    assert only(Publish, effects).model.version == 1
    order = [type(effect) for effect in effects]
    assert order.index(MakeVersion) < order.index(Publish) < order.index(Assign)


def test_a_client_has_at_most_one_open_turn_and_concurrency_is_kept() -> None:
    driver = Driver(task={"clients": 20}, participation={"concurrency": 8})
    for _ in range(50):
        open_clients = [a.client for a, _ in driver.coordinator.turns.open.values()]
        assert len(open_clients) == len(set(open_clients)) == 8
        driver.give()


def test_selection_is_the_same_for_the_same_seed_and_differs_for_another() -> None:
    def clients(seed: int) -> list[str]:
        driver = Driver(task={"clients": 50}, experiment={"seed": seed})
        return [a.client for a in driver.open.values()]

    assert clients(1) == clients(1) != clients(2)


# ---- deadline


def test_the_deadline_fires_without_traffic_and_steps_with_what_there_is() -> None:
    driver = Driver(aggregation={"quorum": 3, "deadline_s": 10})
    driver.give()
    assert none(MakeVersion, driver.wait(9.9))
    effects = driver.wait(0.2)
    made = only(MakeVersion, effects)
    assert (made.closed_by, len(made.folds)) == ("deadline", 1)


def test_an_empty_deadline_extends_and_republishes_less_and_less_often() -> None:
    driver = Driver(aggregation={"deadline_s": 10}, participation={"assignment_deadline_s": 1e6})
    published = []
    for extension in range(1, 10):
        effects = driver.wait(10)
        assert none(MakeVersion, effects)
        if not none(Publish, effects):
            published.append((extension, only(Publish, effects).model.attempt))
    assert published == [(1, 1), (2, 2), (4, 3), (8, 4)]


def test_min_updates_is_what_a_deadline_needs() -> None:
    driver = Driver(aggregation={"quorum": 3, "deadline_s": 10, "min_updates": 2})
    driver.give()
    assert none(MakeVersion, driver.wait(10))
    driver.give()
    assert only(MakeVersion, driver.wait(10)).closed_by == "deadline"


def test_on_deadline_extend_never_steps_without_a_quorum() -> None:
    driver = Driver(aggregation={"quorum": 3, "deadline_s": 10, "on_deadline": "extend"})
    driver.give()
    driver.give()
    assert none(MakeVersion, driver.wait(10))
    assert only(MakeVersion, driver.give()).closed_by == "quorum"


def test_on_deadline_abort_ends_the_run() -> None:
    driver = Driver(aggregation={"quorum": 3, "deadline_s": 10, "on_deadline": "abort"})
    driver.give()
    effects = driver.wait(10)
    finish = only(Finish, effects)
    assert finish.status == "aborted"
    assert len(finish.unused) == 1
    assert only(Publish, effects).model.final


# ---- dispositions


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": Run(run_id="other", run_started=1, epoch=1)}, "unknown_run"),
        ({"client": "5", "update_id": "run:1:99"}, "forged"),
        ({"update_id": "run:1:99", "client": "99"}, "forged"),
        ({"sends": "weights"}, "wrong_kind"),
        ({"examples": 0}, "no_examples"),
        ({"base_version": 7}, "unknown_version"),
        ({"tensors": {"trainable/0": np.ones((2, 3), np.float32)}}, "wrong_shape"),
        ({"tensors": {**weights(), "trainable/0": np.ones((3, 2), np.float32)}}, "wrong_shape"),
        ({"tensors": {**weights(), "trainable/0": np.ones((2, 3))}}, "wrong_shape"),
        ({"tensors": weights(float("inf"))}, "not_finite"),
        ({"tensors": weights(float("nan"))}, "not_finite"),
        ({"tensors": weights(3e38)}, "not_finite"),
    ],
)
def test_what_cannot_be_used_is_rejected_and_the_turn_goes_on(
    changes: dict[str, Any], reason: str
) -> None:
    driver = Driver()
    effects = driver.give(**changes)
    assert only(Reject, effects).reason == reason
    assert none(Hold, effects)
    assert driver.coordinator.buffer.size == 0
    assert len(driver.coordinator.turns.open) == 6


def test_a_duplicate_is_acked_and_not_folded() -> None:
    driver = Driver()
    update = driver.update()
    driver.give(update)
    effects = driver.give(update, seen_in="ledger")
    only(Duplicate, effects)
    assert driver.coordinator.buffer.size == 1


def test_an_update_of_the_open_buffer_that_comes_back_is_held_again_and_not_folded() -> None:
    driver = Driver()
    update = driver.update()
    driver.give(update)
    effects = driver.give(update, seen_in="buffer")
    only(Hold, effects)
    assert none(Duplicate, effects)
    assert driver.coordinator.buffer.size == 1


def test_one_that_comes_back_to_hands_that_may_hold_only_one_is_recorded_at_once() -> None:
    # Given two updates in hand, of which one comes back a third time
    driver = Driver()
    update = driver.update()
    driver.give(update)
    assert none(SaveBuffer, driver.give())
    # When no more than one may be held from now on
    driver.coordinator.hold_updates = 1
    effects = driver.give(update, seen_in="buffer")
    # Then it does not keep all others out until the end of hold_s
    assert [type(effect) for effect in effects] == [Hold, SaveBuffer, CallAt]
    assert len(only(SaveBuffer, effects).folds) == 2


def test_staleness_is_counted_and_bounded() -> None:
    driver = Driver(aggregation={"quorum": 1, "max_staleness": 1})
    old = driver.update()
    older = driver.update()
    driver.give()
    made = only(MakeVersion, driver.give(old))
    assert made.folds[0].staleness == 1
    assert only(Reject, driver.give(older)).reason == "too_stale"


def test_updates_of_an_earlier_epoch_of_the_run_are_welcome() -> None:
    driver = Driver()
    only(Hold, driver.give(run=Run(run_id="run", run_started=1, epoch=0)))


# ---- dropouts and failures


def test_a_turn_that_brings_nothing_is_a_dropout_and_its_late_update_still_counts() -> None:
    driver = Driver(
        task={"clients": 12},
        participation={"concurrency": 3, "assignment_deadline_s": 20},
        aggregation={"deadline_s": 1000},
    )
    late = driver.update()
    effects = driver.wait(20)
    dropped = only(RecordDropouts, effects).assignments
    assert len(dropped) == 3
    assert late.update_id in {a.assignment_id for a in dropped}
    assert len(driver.assigned(effects)) == 3
    only(Hold, driver.give(late))
    assert driver.coordinator.buffer.size == 1


def test_a_failed_training_costs_no_deadline() -> None:
    driver = Driver(participation={"concurrency": 3})
    turn = driver.turn()
    effects = driver.give(failure(turn))
    only(RecordFailure, effects)
    assert len(driver.assigned(effects)) == 1


def test_nothing_but_failures_ends_the_run_with_their_reason() -> None:
    driver = Driver(participation={"concurrency": 4})
    for _ in range(3):
        assert none(Finish, driver.give(failure(driver.turn())))
    finish = only(Finish, driver.give(failure(driver.turn())))
    assert finish.status == "failed"
    assert "no such data" in finish.detail


def test_a_broken_worker_cannot_end_the_run_of_one_that_is_slow() -> None:
    # Given a turn that somebody is busy with
    driver = Driver(participation={"concurrency": 4})
    slow = driver.update()
    # When all others fail, again and again
    for _ in range(100):
        assert none(Finish, driver.give(failure(driver.turn())))
    # Then its update still counts, and ends the row of failures
    only(Hold, driver.give(slow))
    for _ in range(3):
        assert none(Finish, driver.give(failure(driver.turn())))


def test_version_0_is_not_asked_for_for_ever() -> None:
    driver = Driver(initial=False)
    for _ in range(2):
        assert none(Finish, driver.give(failure(driver.turn())))
    assert only(Finish, driver.give(failure(driver.turn()))).status == "failed"


def test_failures_of_turns_that_nobody_has_cannot_end_a_run() -> None:
    driver = Driver(participation={"concurrency": 2}, aggregation={"quorum": 2})
    turn = driver.turn()
    for _ in range(50):
        assert none(Finish, driver.give(failure(turn)))


def test_what_a_run_failed_of_is_one_line_that_cannot_take_over_a_terminal() -> None:
    # Given trainings that fail for a reason of many lines, with escapes in it
    driver = Driver(participation={"concurrency": 2}, aggregation={"quorum": 2})
    said: list[Finish] = []
    while not said:
        failed = failure(driver.turn()).model_copy(update={"reason": "no data\n\x1b[2Jhere"})
        said = [effect for effect in driver.give(failed) if isinstance(effect, Finish)]
    # Then what a person reads of them is one line
    assert said[0].detail.endswith("trainings failed in a row: no data??[2Jhere")


def failure(turn: Assignment) -> ClientFailed:
    return ClientFailed(
        run=RUN,
        update_id=turn.assignment_id,
        client=turn.client,
        turn=turn.turn,
        base_version=0,
        worker="w",
        reason="no such data",
    )


# ---- cohort


COHORT = {"mode": "cohort", "sampling_rate": 0.5}


def test_a_cohort_is_chosen_together_and_only_its_members_count_for_its_version() -> None:
    # Given a cohort of 4, of which the quorum needs 3
    driver = Driver(participation={**COHORT, "over_selection": 1.3})
    assert len(driver.open) == 4
    assert all(a.exact_version and a.version == 0 for a in driver.open.values())
    straggler = driver.update()
    # When three have answered
    for _ in range(3):
        effects = driver.give()
    # Then the version is made, the next cohort is chosen, and the straggler is late
    assert only(MakeVersion, effects).closed_by == "quorum"
    assert {a.version for a in driver.assigned(effects)} == {1}
    assert only(Reject, driver.give(straggler)).reason == "late"


def test_an_outsider_is_late_and_nobody_counts_twice_in_a_cohort() -> None:
    driver = Driver(participation=COHORT)
    members = {a.client for a in driver.open.values()}
    outsider = next(str(c) for c in range(6) if str(c) not in members)
    turn = driver.turn()
    effects = driver.give(to=turn, client=outsider, update_id=f"run:{turn.turn}:{outsider}")
    assert only(Reject, effects).reason == "late"
    driver.give(to=turn)
    again = driver.give(to=turn, turn=99, update_id=f"run:99:{turn.client}")
    assert only(Reject, again).reason == "late"


def test_an_update_for_the_version_before_is_late_though_its_client_is_in_the_cohort() -> None:
    # Given a cohort of everybody, closed by its deadline without one of them
    driver = Driver(participation={"mode": "cohort"}, aggregation={"deadline_s": 10})
    straggler = driver.update()
    for _ in range(4):
        driver.give()
    only(MakeVersion, driver.wait(10))
    # When the straggler's update comes, its client being in the next cohort too
    effects = driver.give(straggler)
    # Then it is late, and its client may still contribute to the new version
    assert only(Reject, effects).reason == "late"
    turn = next(a for a in driver.open.values() if a.client == straggler.client)
    only(Hold, driver.give(to=turn))


def test_selection_is_fair_even_when_nearly_all_are_busy() -> None:
    from fluffle.aggregator.selections.uniform import choose

    idle = {"3", "17", "64", "99"}
    chosen = [choose(42, turn, 100, lambda client: client in idle) for turn in range(2000)]
    shares = [chosen.count(client) / 2000 for client in sorted(idle)]
    assert set(chosen) == idle
    assert shares == pytest.approx([0.25] * 4, abs=0.05)
    assert choose(42, 1, 100, lambda client: False) is None


def test_a_member_that_drops_out_is_replaced_and_may_still_come_while_its_version_lasts() -> None:
    driver = Driver(
        participation={**COHORT, "assignment_deadline_s": 5}, aggregation={"deadline_s": 100}
    )
    late = driver.update()
    members = {late.client, *(a.client for a in driver.open.values())}
    effects = driver.wait(5)
    replaced = driver.assigned(effects)
    assert len(replaced) == 3
    assert not members & {a.client for a in replaced}
    only(Hold, driver.give(late))


def test_when_everybody_is_in_the_cohort_a_dropout_gets_another_turn() -> None:
    driver = Driver(
        participation={"mode": "cohort", "assignment_deadline_s": 5},
        aggregation={"deadline_s": 100},
    )
    done = driver.give()
    assert none(MakeVersion, done)
    assert len(driver.assigned(driver.wait(5))) == 5


def test_a_deterministic_cohort_folds_in_client_order_whatever_the_order_of_arrival() -> None:
    def final(order: list[int]) -> bytes:
        driver = Driver(
            participation={"mode": "cohort"},
            aggregation={
                "strategy": "fedavg",
                "deterministic": True,
                "on_deadline": "extend",
                "weighting": "uniform",
            },
        )
        turns = sorted(driver.open.values(), key=lambda a: a.client)
        rng = np.random.default_rng(0)
        values = [rng.normal(scale=10.0**i, size=(2, 3)).astype(np.float32) for i in range(6)]
        for i in order:
            tensors = {**weights(), "trainable/0": values[i]}
            effects = driver.give(driver.update(turns[i], tensors=tensors))
        return only(MakeVersion, effects).state["model/trainable/0"].tobytes()

    assert final([0, 1, 2, 3, 4, 5]) == final([5, 3, 1, 0, 2, 4])


def test_a_deterministic_cohort_gives_a_dropout_the_very_same_turn_again() -> None:
    # Given a deterministic cohort of half of the clients, of which one has trained
    driver = Driver(
        participation={**COHORT, "assignment_deadline_s": 5},
        aggregation={"deterministic": True, "on_deadline": "extend", "deadline_s": 100},
    )
    turns = dict(driver.open)
    first, late = driver.update(), driver.update()
    driver.give(first)
    # When the others bring nothing in time
    again = driver.assigned(driver.wait(5))
    # Then each has its own turn again, and no other
    assert {a.assignment_id for a in again} == turns.keys() - {first.update_id}
    # And one that answers its first turn all the same has answered
    only(Hold, driver.give(late))
    again = driver.assigned(driver.wait(5))
    assert {a.assignment_id for a in again} == turns.keys() - {first.update_id, late.update_id}


def test_a_deterministic_cohort_asks_nobody_for_weights_that_are_there() -> None:
    # Given a deterministic run whose first turn, which asks for weights, was lost once
    driver = Driver(
        initial=False,
        participation={"mode": "cohort", "assignment_deadline_s": 5},
        aggregation={"deterministic": True, "on_deadline": "extend", "deadline_s": 100},
    )
    driver.open.clear()
    (asked,) = driver.assigned(driver.wait(5))
    # When the weights come
    effects = driver.give(driver.update(asked, sends="initial", examples=0))
    # Then all that is issued from now on is trained
    only(MakeVersion, effects)
    assert {a.kind for a in driver.assigned(effects)} == {"train"}


# ---- checkpoints and resuming


def test_a_partial_checkpoint_is_taken_when_many_are_held_or_for_long() -> None:
    driver = Driver(
        aggregation={"quorum": 6, "hold_s": 60, "deadline_s": 1000},
        participation={"assignment_deadline_s": 1000},
    )
    for _ in range(3):
        assert none(SaveBuffer, driver.give())
    assert len(only(SaveBuffer, driver.give()).folds) == 4
    driver.give()
    assert none(SaveBuffer, driver.wait(59))
    saved = only(SaveBuffer, driver.wait(1))
    assert len(saved.folds) == 1
    assert len(only(MakeVersion, driver.give()).folds) == 1


def test_pausing_saves_what_the_ledger_does_not_know() -> None:
    driver = Driver()
    assert driver.coordinator.pause() == []
    driver.give()
    assert len(only(SaveBuffer, driver.coordinator.pause()).folds) == 1
    assert driver.coordinator.pause() == []


def test_a_restart_publishes_the_current_version_and_goes_on_with_the_buffer() -> None:
    # Given a run that stopped with two updates in a buffer of three
    before = Driver(aggregation={"quorum": 3, "strategy": "fedavg"})
    before.give()
    before.give(tensors=weights(5.0))
    saved = only(SaveBuffer, before.coordinator.pause())
    # When it is resumed
    checkpoint = Checkpoint(
        version=0, state=saved.state, turn=saved.turn, buffered=list(saved.folds)
    )
    after = Driver(checkpoint=checkpoint, aggregation={"quorum": 3, "strategy": "fedavg"})
    assert only(Publish, after.log).model.version == 0
    # Then the third update closes it, and all three count
    made = only(MakeVersion, after.give(tensors=weights(6.0)))
    assert len(made.folds) == 1
    assert np.allclose(made.state["model/trainable/0"], (1 + 5 + 6) / 3)


def test_a_restarted_cohort_has_the_same_turns_less_those_that_contributed() -> None:
    tables: dict[str, Any] = {"participation": COHORT, "aggregation": {"deadline_s": 1000}}
    before = Driver(**tables)
    issued = dict(before.open)
    done = before.update()
    before.give(done)
    saved = only(SaveBuffer, before.coordinator.pause())
    checkpoint = Checkpoint(state=saved.state, turn=saved.turn, buffered=list(saved.folds))
    after = Driver(checkpoint=checkpoint, **tables)
    assert set(after.open) == set(issued) - {done.update_id}


# ---- the end


def test_it_stops_after_the_last_version_with_a_final_model() -> None:
    driver = Driver(experiment={"versions": 2}, aggregation={"quorum": 1})
    assert none(Finish, driver.give())
    effects = driver.give()
    assert only(Finish, effects).status == "finished"
    assert only(Publish, effects).model.final
    assert none(Assign, effects)
    assert driver.coordinator.phase == "done"


def test_it_waits_for_the_evaluation_of_the_last_version_but_not_for_ever() -> None:
    for answer in (True, False):
        driver = Driver(
            experiment={"versions": 1}, aggregation={"quorum": 1}, evaluation={"every_updates": 5}
        )
        assert none(Finish, driver.give())
        assert only(Reject, driver.give()).reason == "late"
        if answer:
            effects = driver.give(evaluation(1, 0.5))
            only(RecordEvaluation, effects)
        else:
            attempts = []
            for _ in range(int(FINAL_WAIT_S / FINAL_AGAIN_S) - 1):
                effects = driver.wait(FINAL_AGAIN_S)
                assert none(Finish, effects)
                attempts.append(only(Publish, effects).model.attempt)
            assert attempts == sorted(set(attempts))
            effects = driver.wait(FINAL_AGAIN_S)
        only(Finish, effects)


def test_the_target_accuracy_ends_the_run() -> None:
    driver = Driver(experiment={"target_accuracy": 0.9}, evaluation={"every_updates": 5})
    assert driver.coordinator.phase == "running"
    driver.give(evaluation(0, 0.89))
    assert driver.coordinator.phase == "running"
    finish = only(Finish, driver.give(evaluation(0, 0.91)))
    assert "0.91" in finish.detail


def test_patience_ends_the_run() -> None:
    # Given a run with a patience of two evaluations, and versions 0 to 4
    driver = Driver(
        experiment={"patience": 2, "min_delta": 0.01},
        evaluation={"every_updates": 5},
        aggregation={"quorum": 1},
    )
    for _ in range(4):
        driver.give()
    # When evaluations get no better, one comes twice, and one is late
    for version, accuracy in ((0, 0.5), (2, 0.6), (3, 0.605), (3, 0.605), (1, 0.1)):
        assert none(Finish, driver.give(evaluation(version, accuracy)))
        assert driver.coordinator.phase == "running"
    # Then the second that is no better ends the run
    assert "0.6 in 2" in only(Finish, driver.give(evaluation(4, 0.6))).detail


def test_patience_counts_on_after_a_restart() -> None:
    metrics: list[Any] = [(0, {"accuracy": 0.6}), (1, {"accuracy": 0.5})]
    tables = {"experiment": {"patience": 2}, "evaluation": {"every_updates": 5}}
    state = make_strategy(Experiment.model_validate(tables)).init(weights())
    checkpoint = Checkpoint(version=2, state=state, evaluations=metrics)
    driver = Driver(checkpoint=checkpoint, **tables)
    assert only(Finish, driver.give(evaluation(2, 0.55))).status == "finished"


def test_an_evaluation_of_a_version_that_does_not_exist_is_rejected() -> None:
    driver = Driver(evaluation={"every_updates": 5})
    assert only(Reject, driver.give(evaluation(3, 1.0))).reason == "unknown_version"


def test_max_minutes_ends_the_run_and_counts_earlier_starts() -> None:
    driver = Driver(
        experiment={"max_minutes": 2}, checkpoint=Checkpoint(state=None, elapsed_s=60.0)
    )
    assert none(Finish, driver.wait(59))
    assert only(Finish, driver.wait(1)).status == "finished"


def test_a_run_that_crashed_between_its_last_version_and_its_end_just_ends() -> None:
    state = make_strategy(Experiment()).init(weights())
    driver = Driver(experiment={"versions": 3}, checkpoint=Checkpoint(version=3, state=state))
    assert only(Publish, driver.log).model.final
    only(Finish, driver.log)


# ---- clients that keep state

SCAFFOLD = {
    "task": {"clients": 2},
    "training": {"optimizer": "sgd"},
    "aggregation": {"strategy": "scaffold", "quorum": 2},
}


def with_control(value: float = 1.0) -> Tensors:
    return {**weights(value), "control/0": np.full((2, 3), value, np.float32)}


def test_a_turn_names_the_state_that_goes_with_what_was_folded_of_its_client() -> None:
    # Given two clients that keep state: their first turns go on from nothing
    driver = Driver(**SCAFFOLD)
    first, second = driver.turn(), driver.turn()
    assert (first.after, second.after) == ("", "")
    # When one update is folded, its client goes on from the state that this training made
    (third,) = driver.assigned(driver.give(to=first, tensors=with_control(), after=""))
    assert (third.client, third.after) == (first.client, state_name("", first.turn, 0))
    # When the other is rejected, its client goes on from where it was
    effects = driver.give(to=second, tensors=weights(), after="")
    assert only(Reject, effects).reason == "wrong_shape"
    (fourth,) = driver.assigned(effects)
    assert (fourth.client, fourth.after) == (second.client, "")


def test_of_two_turns_that_went_on_from_one_state_only_the_first_to_arrive_counts() -> None:
    # Given a client whose turn is overdue, and whose next one is folded
    driver = Driver(
        **{**SCAFFOLD, "task": {"clients": 1}, "aggregation": {"strategy": "scaffold"}},
        participation={"assignment_deadline_s": 5},
        experiment={"versions": 9},
    )
    late = driver.turn()
    (prompt,) = driver.assigned(driver.wait(6))
    assert prompt.after == ""
    driver.give(to=prompt, tensors=with_control(), after="")
    # When the overdue one comes after all, it changes nothing
    effects = driver.give(to=late, tensors=with_control(), base_version=0, after="")
    assert only(Reject, effects).reason == "superseded"
    assert list(driver.open.values())[-1].after == state_name("", prompt.turn, 0)


def test_after_a_restart_turns_name_what_the_ledger_knows() -> None:
    state = make_strategy(Experiment.model_validate(SCAFFOLD)).init(weights())
    checkpoint = Checkpoint(version=4, turn=9, state=state, states={"1": "0123456789abcdef"})
    driver = Driver(checkpoint=checkpoint, **SCAFFOLD)
    assert {t.client: t.after for t in driver.open.values()} == {"0": "", "1": "0123456789abcdef"}


def test_where_clients_keep_nothing_turns_name_nothing() -> None:
    assert {turn.after for turn in Driver().open.values()} == {None}


def evaluation(version: int, accuracy: float) -> Evaluation:
    return Evaluation(
        run=RUN, version=version, worker="e", metrics={"accuracy": accuracy}, examples=10
    )


def test_the_timer_it_asks_for_is_never_later_than_what_is_due() -> None:
    driver = Driver(
        aggregation={"deadline_s": 10, "hold_s": 3}, participation={"assignment_deadline_s": 7}
    )
    start = driver.now
    assert only(CallAt, driver.log).time == start + 7
    assert only(CallAt, driver.give()).time == start + 3


@pytest.mark.parametrize("began", [0.0, 0.81, 100.0, 1e6 + 0.1])
@pytest.mark.parametrize(
    ("aggregation", "minutes"), [({"hold_s": 0.3}, None), ({"hold_s": 60}, 0.007)]
)
def test_a_timer_that_came_is_not_asked_for_again(
    began: float, aggregation: dict[str, Any], minutes: float | None
) -> None:
    # Given a timer whose time is no round number
    tables: dict[str, Any] = {
        "experiment": {"max_minutes": minutes},
        "aggregation": {"deadline_s": 1000, "quorum": 3, **aggregation},
    }
    driver = Driver(**tables)
    driver.now = began
    driver.coordinator._timers.start(began)
    # When the clock is exactly there, as a virtual one is
    driver.now = only(CallAt, driver.give()).time
    # Then it does something, and the next one is later
    assert only(CallAt, driver.wait(0)).time > driver.now


def test_a_run_that_waits_for_its_last_evaluation_waits_and_does_not_spin() -> None:
    # Given a run that reaches its target while an update is held
    driver = Driver(
        experiment={"target_accuracy": 0.5},
        evaluation={"every_updates": 1},
        aggregation={"hold_s": 3, "quorum": 2, "deadline_s": 1000},
    )
    driver.give()
    driver.give()
    driver.give()
    assert none(Finish, driver.give(evaluation(0, 0.9)))
    assert driver.coordinator.phase == "finishing"
    # Then the time at which it would have been saved brings nothing, and is not asked for
    assert only(CallAt, driver.wait(3.5)).time > driver.now
    assert only(Finish, driver.give(evaluation(1, 0.9))).status == "finished"


def diverged(version: int) -> Evaluation:
    return evaluation(version, 0.5).model_copy(update={"diverged": True})


def test_a_model_that_diverges_ends_the_run_by_name() -> None:
    # Given a run at its second version
    driver = Driver(aggregation={"quorum": 1}, evaluation={"every_updates": 1})
    driver.give()
    driver.give()
    # When the evaluator can make nothing of its first
    assert none(Finish, driver.give(diverged(1)))
    # Then what came of it meanwhile is measured, and the run has failed where it began
    finish = only(Finish, driver.give(diverged(2)))
    assert finish.status == "failed"
    assert finish.detail.startswith("diverged at version 1: ")


def test_the_last_version_may_be_the_one_that_diverges() -> None:
    driver = Driver(
        experiment={"versions": 1}, aggregation={"quorum": 1}, evaluation={"every_updates": 1}
    )
    driver.give()
    assert driver.coordinator.phase == "finishing"
    finish = only(Finish, driver.give(diverged(1)))
    assert (finish.status, finish.detail[:21]) == ("failed", "diverged at version 1")


def test_a_target_that_no_evaluation_can_reach_is_said_at_the_first() -> None:
    driver = Driver(experiment={"target_accuracy": 0.9}, evaluation={"every_updates": 1})
    measured = evaluation(0, 0.0).model_copy(update={"metrics": {"auc": 0.5, "loss": 1.0}})
    finish = only(Finish, driver.give(measured))
    assert finish.status == "failed"
    assert "target_accuracy would never apply: evaluations have no accuracy" in finish.detail
