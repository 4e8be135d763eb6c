"""How long a turn may take before it counts as a dropout."""

from __future__ import annotations

from fluffle.aggregator.coordinator.effects import Assign, Hold, RecordDropouts
from fluffle.aggregator.coordinator.patience import Patience
from tests.aggregator.test_coordinator import Driver, none, only


def heard(patience: Patience, *took: float) -> float:
    for number, seconds in enumerate(took):
        patience.issued(f"{len(took)}-{number}", 0.0)
        patience.answered(f"{len(took)}-{number}", seconds)
    return patience.seconds


def test_it_follows_the_longest_turn_of_late_within_bounds() -> None:
    # Given no answer, or a few, nobody knows how long turns take
    assert heard(Patience(None, 10)) == heard(Patience(None, 10), 20.0, 20.0, 20.0, 20.0) == 600
    # When there are five, it is three times the longest
    patience = Patience(None, 10)
    assert heard(patience, 4.0, 5.0, 20.0, 4.0, 5.0) == 60
    # Then until that is a hundred answers ago
    assert heard(patience, *[7.0] * 95) == 60
    assert heard(patience, *[7.0] * 6) == 21
    # And it is never shorter than ten seconds, or longer than ten minutes
    assert heard(patience, *[0.001] * 101) == 10
    assert heard(patience, 900.0) == 600


def test_what_an_experiment_says_holds() -> None:
    assert heard(Patience(7.0, 10), *[0.1] * 50) == 7


def test_only_the_first_answer_counts_and_only_to_what_was_asked() -> None:
    patience = Patience(None, 10)
    for _ in range(2):  # a deterministic cohort's dropout is issued again
        patience.issued("again", 0.0)
    for now in (20.0, 500.0):
        patience.answered("again", now)
        patience.answered("forged", now)
    assert heard(patience, *[1.0] * 4) == 60


def test_a_lost_turn_costs_as_much_as_a_few_turns_and_not_ten_minutes() -> None:
    # Given six clients in flight, whose turns take four seconds
    driver = Driver(
        aggregation={"quorum": 3, "deadline_s": 1e6},
        task={"clients": 200},
        participation={"concurrency": 6},
    )
    lost = driver.turn()
    driver.now += 4
    for _ in range(5):
        effects = driver.give()
    # Then the sixth, which brings nothing, is overdue after three times as long
    assert only(Assign, effects).expires_s == 12
    assert none(RecordDropouts, driver.wait(7.9))
    dropped = driver.wait(0.2)
    assert only(RecordDropouts, dropped).assignments == [lost]
    assert len(driver.assigned(dropped)) == 1

    # And where it comes late, it counts, and whoever is as slow is waited for from now on
    driver.now += 8
    late = driver.give(driver.update(lost))
    assert only(Hold, late).update_id == lost.assignment_id
    assert driver.coordinator.turns.patience.seconds > 60


def test_a_queue_in_front_of_few_slots_is_no_dropout() -> None:
    # Given fifty turns that wait for one slot, which answers one each second
    driver = Driver(
        aggregation={"quorum": 3, "deadline_s": 1e6},
        task={"clients": 200},
        participation={"concurrency": 50},
    )
    for _ in range(200):
        driver.now += 1
        assert none(RecordDropouts, driver.give())
        assert none(RecordDropouts, driver.wait(0))
