"""Trainings that share a step: which do never depends on the real clock."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from fluffle.simulation.bundles import Bundles
from fluffle.simulation.pool import Pool


@pytest.fixture(params=[1, 3])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool = Pool(object, request.param)
    yield pool
    pool.close()


def test_what_has_gathered_is_bundled_by_key_in_the_order_in_which_it_is_due(pool: Pool) -> None:
    seen: list[tuple[str, ...]] = []

    def work(made: Any, whats: Sequence[str]) -> list[Any]:
        time.sleep(random.random() / 500)  # whoever is first
        seen.append(tuple(whats))
        return [what.upper() for what in whats]

    bundles = Bundles(pool, work, lanes=2)
    # Given trainings of two keys, and one that comes once the loop has waited
    members = {
        name: bundles.submit(due, key, name)
        for name, due, key in [("c", 3, 1), ("a", 1, 1), ("x", 2, 2), ("b", 2, 1)]
    }
    assert bundles.wait(members["x"]) == "X"
    late = bundles.submit(1.5, 1, "d")
    # Then each gets its own result
    assert [bundles.wait(members[name]) for name in "bca"] == ["B", "C", "A"]
    assert bundles.wait(late) == "D"
    # And who shared with whom is a function of the order of events
    assert sorted(seen) == [("a", "b"), ("c",), ("d",), ("x",)]


def test_one_that_fails_fails_alone(pool: Pool) -> None:
    def work(made: Any, whats: Sequence[int]) -> list[Any]:
        return [ValueError("no") if what == 1 else what for what in whats]

    bundles = Bundles(pool, work, lanes=8)
    members = [bundles.submit(0.0, "same", what) for what in range(3)]
    assert bundles.wait(members[0]) == 0
    with pytest.raises(ValueError, match="no"):
        bundles.wait(members[1])
    assert bundles.wait(members[2]) == 2


def test_a_step_that_fails_fails_all_that_shared_it(pool: Pool) -> None:
    def work(made: Any, whats: Sequence[int]) -> list[Any]:
        raise ValueError("all")

    bundles = Bundles(pool, work, lanes=8)
    members = [bundles.submit(0.0, "same", what) for what in range(2)]
    for member in members:
        with pytest.raises(ValueError, match="all"):
            bundles.wait(member)


def test_who_is_abandoned_keeps_nobody_waiting(pool: Pool) -> None:
    def work(made: Any, whats: Sequence[int]) -> list[Any]:
        return list(whats)

    bundles = Bundles(pool, work, lanes=2)
    members = [bundles.submit(0.0, "same", what) for what in range(6)]
    # Given one that had not been bundled, one whose bundle is done, and a whole bundle
    bundles.abandon(members[5])
    assert bundles.wait(members[0]) == 0
    bundles.abandon(members[1])
    for member in members[2:4]:
        bundles.abandon(member)
    # Then the rest come, and no result lies about
    assert bundles.wait(members[4]) == 4
    until = time.monotonic() + 30
    while pool._uncollected and time.monotonic() < until:
        time.sleep(0.01)
    assert pool._uncollected == 0
