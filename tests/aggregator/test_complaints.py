"""A flood of bad messages is a few lines for a person, and nothing is left out of the counts."""

from __future__ import annotations

from fluffle.aggregator.rate_limited_log import EVERY_S, FIRST, Complaints


def test_the_first_few_of_each_kind_are_said_and_the_rest_counted_now_and_then() -> None:
    # Given ten thousand bad messages of one kind, and one of another, within a second
    said: list[str] = []
    now = 0.0
    complaints = Complaints(said.append, lambda: now)
    for number in range(10_000):
        complaints.add("undecodable", f"message {number}")
        complaints.flush()
    complaints.add("forged", "one of another kind")
    # Then only the first few were said
    assert said == [*(f"message {i}" for i in range(FIRST)), "one of another kind"]
    # And how many more there were, when it is time to
    now = EVERY_S
    complaints.flush()
    complaints.flush()
    assert said[FIRST + 1 :] == ["9997 more messages of no use (undecodable 9997)"]


def test_nothing_is_left_unsaid_at_the_end() -> None:
    said: list[str] = []
    complaints = Complaints(said.append, lambda: 0.0)
    for number in range(FIRST + 1):
        complaints.add("failed", f"client {number} failed")
    complaints.flush(force=True)
    assert said[-1] == "1 more messages of no use (failed 1)"
