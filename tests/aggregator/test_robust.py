"""Robust rules: order statistics, what bad updates can and cannot do, and what a step costs."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import ValidationError

from fluffle.aggregator.coordinator.effects import MakeVersion
from fluffle.aggregator.strategies.base import Strategy, model_of
from fluffle.aggregator.strategies.krum import Krum
from fluffle.aggregator.strategies.median import Median, TrimmedMean
from fluffle.aggregator.strategies.norm_bounding import NormBounding
from fluffle.aggregator.strategies.optimizers import Adaptive, Sgd, adam
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.aggregator.strategies.sorting import Sorter, block_length
from fluffle.schemas import ClientUpdate, Experiment, Run, Tensors, UserError
from tests.aggregator.test_coordinator import Driver, none, only, weights

Floats = NDArray[np.float32]
STEP = Sgd(1.0)
RULES: dict[str, Strategy] = {
    "median": Median(STEP),
    "trimmed-mean": TrimmedMean(STEP, 0.25),
    "krum": Krum(STEP, 2),
    "multi-krum": Krum(STEP, 2, None),
}
each_rule = pytest.mark.parametrize("name", sorted(RULES))


def update_of(values: Floats, turn: int) -> ClientUpdate:
    return ClientUpdate(
        run=Run(run_id="r", run_started=0, epoch=1),
        update_id=f"u{turn}",
        client="c",
        turn=turn,
        base_version=0,
        worker="w",
        sends="delta",
        examples=1,
        tensors={"trainable/0": values},
    )


def aggregated(strategy: Strategy, rows: Floats, order: list[int] | None = None) -> Floats:
    """What the rule makes of deltas (one a row), with a plain step from zero."""
    state = strategy.init({"trainable/0": np.zeros(rows.shape[1], np.float32)})
    for i in range(len(rows)) if order is None else order:
        state = strategy.accept(state, update_of(rows[i], i), 0)
    made = model_of(strategy.step(state))["trainable/0"]
    assert made.dtype == np.float32
    return np.asarray(made, np.float32)


@pytest.mark.parametrize("rows", range(1, 11))
def test_the_network_sorts_every_pattern_of_zeros_and_ones(rows: int) -> None:
    # A network that sorts all of these sorts everything (the 0-1 principle).
    patterns = np.array(list(itertools.product((0, 1), repeat=rows)), np.float32).T
    got = Sorter(rows, range(rows))(list(patterns))
    assert np.array_equal(np.stack(got), np.sort(patterns, axis=0))


@given(st.data(), st.integers(1, 40), st.integers(1, 50))
def test_wanted_ranks_are_those_of_a_full_sort(data: st.DataObject, rows: int, size: int) -> None:
    values = data.draw(hnp.arrays(np.float32, (rows, size), elements=st.floats(-9, 9, width=32)))
    wanted = data.draw(st.sets(st.integers(0, rows - 1), min_size=1))
    sort, before = Sorter(rows, wanted), values.copy()
    for _ in range(2):  # the scratch is used again
        got = sort(list(values))
        for rank in wanted:
            assert np.array_equal(got[rank], np.sort(values, axis=0)[rank])
    assert np.array_equal(values, before)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 31, 100])
def test_median_and_trimmed_mean_are_those_of_the_stack_in_any_number_of_blocks(rows: int) -> None:
    values = np.random.default_rng(rows).normal(size=(rows, block_length(rows) + 17))
    values = values.astype(np.float32)
    stack = np.sort(values.astype(np.float64), axis=0)
    np.testing.assert_array_equal(
        aggregated(Median(STEP), values), np.median(stack, axis=0).astype(np.float32)
    )
    cut = rows // 4
    expected = stack[cut : rows - cut].mean(axis=0)
    got = aggregated(TrimmedMean(STEP, 0.25), values)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_a_trim_that_is_no_binary_fraction_cuts_what_it_says() -> None:
    values = np.arange(100, dtype=np.float32).reshape(100, 1) ** 2
    got = aggregated(TrimmedMean(STEP, 0.29), values)
    assert got[0] == pytest.approx((np.arange(29, 71) ** 2.0).mean())


@each_rule
@given(st.integers(0, 2**32), st.integers(1, 12), st.randoms())
def test_the_order_of_arrival_moves_no_byte(
    name: str, seed: int, count: int, random: np.random.Generator
) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, 9)).astype(np.float32)
    order = list(range(count))
    random.shuffle(order)
    first, second = aggregated(RULES[name], rows), aggregated(RULES[name], rows, order)
    assert first.tobytes() == second.tobytes()


honest_and_bad = st.tuples(
    hnp.arrays(np.float32, (6, 4), elements=st.floats(-1, 1, width=32)),
    hnp.arrays(np.float32, (2, 4), elements=st.floats(-(2.0**66), 2.0**66, width=32)),
)


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
@given(honest_and_bad)
def test_two_of_eight_bad_updates_cannot_leave_the_range_of_the_honest(
    name: str, sent: tuple[Floats, Floats]
) -> None:
    honest, bad = sent
    got = aggregated(RULES[name], np.concatenate([bad, honest]))
    assert (got >= honest.min(axis=0) - 1e-6).all()
    assert (got <= honest.max(axis=0) + 1e-6).all()


@given(
    hnp.arrays(np.float32, (6, 4), elements=st.floats(-1, 1, width=32)),
    st.lists(st.integers(-(10**9), 10**9).filter(lambda v: abs(v) > 100), min_size=8, max_size=8),
)
def test_krum_takes_no_update_that_is_far_from_all_honest_ones(
    honest: Floats, far: list[int]
) -> None:
    # Given two bad updates of eight, far away, together or apart
    bad = np.array(far, np.float32).reshape(2, 4)

    # Then Krum gives one of the honest, and multi-Krum the mean of the honest
    got = aggregated(RULES["krum"], np.concatenate([bad, honest]))
    assert any(np.array_equal(got, row) for row in honest)
    got = aggregated(RULES["multi-krum"], np.concatenate([bad, honest]))
    np.testing.assert_allclose(got, honest.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-7)


def test_krum_tells_updates_apart_that_have_nearly_everything_in_common() -> None:
    # Given six updates that are the same up to one part in a million, and one that is less so
    rng = np.random.default_rng(0)
    rows = np.tile(rng.normal(size=5000).astype(np.float32) * 1000, (7, 1))
    rows[:6] *= 1 + rng.normal(size=(6, 5000)).astype(np.float32) * 1e-6
    rows[6] *= 1 + rng.normal(size=5000).astype(np.float32) * 1e-5

    # Then that one is not among the best six
    got = aggregated(Krum(STEP, 1, None), rows)
    np.testing.assert_allclose(got, rows[:6].mean(axis=0, dtype=np.float64), rtol=1e-7)


def test_bad_updates_however_large_do_not_blur_the_distances_of_the_others() -> None:
    rng = np.random.default_rng(3)
    honest = rng.normal(size=(6, 50)).astype(np.float32)
    near, far = (np.full((2, 50), scale, np.float32) for scale in (1e3, 1e25))
    chosen = [aggregated(RULES["krum"], np.concatenate([bad, honest])) for bad in (near, far)]
    assert chosen[0].tobytes() == chosen[1].tobytes()


def test_krum_decides_between_equals_by_the_earliest_turn() -> None:
    # Two that are each other's only neighbour have the same score; so have the other two.
    rows = np.array([[0.0], [5.0], [1.0], [6.0]], np.float32)
    for order in itertools.permutations(range(4)):
        assert aggregated(Krum(STEP, 1), rows, list(order))[0] == 0.0


@given(hnp.arrays(np.float32, (5, 4), elements=st.floats(-(2.0**50), 2.0**50, width=32)))
def test_norm_bounding_moves_the_model_by_no_more_than_its_bound(rows: Floats) -> None:
    got = aggregated(NormBounding(STEP, 0.5), rows)
    assert np.linalg.norm(got.astype(np.float64)) <= 0.5 * (1 + 1e-6)


@given(hnp.arrays(np.float32, (5, 4), elements=st.floats(-1, 1, width=32)))
def test_norm_bounding_leaves_short_updates_alone(rows: Floats) -> None:
    got = aggregated(NormBounding(STEP, 2.0), rows)
    np.testing.assert_allclose(got, rows.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-9)


def test_krum_makes_no_version_of_fewer_updates_than_it_needs() -> None:
    table = {"strategy": "krum", "quorum": 7, "byzantine_updates": 1}
    experiment = Experiment.model_validate({"aggregation": table})
    assert experiment.min_updates == 5
    assert Experiment.model_validate({"aggregation": {"quorum": 7}}).min_updates == 1


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        ({"strategy": "median", "quorum": 3}, 3),
        ({"strategy": "median", "quorum": 7, "byzantine_updates": 2}, 5),
        ({"strategy": "trimmed-mean", "quorum": 5}, 5),
        ({"strategy": "trimmed-mean", "quorum": 8, "trim": 0.29}, 4),
        ({"strategy": "trimmed-mean", "quorum": 10, "byzantine_updates": 2}, 10),
        ({"strategy": "krum", "quorum": 5}, 5),
        ({"strategy": "multi-krum", "quorum": 6}, 5),
        ({"strategy": "multi-krum", "quorum": 6, "krum_selected": 6}, 5),
    ],
)
def test_no_deadline_lets_the_hostile_updates_through_that_a_rule_is_to_withstand(
    rule: dict[str, Any], least: int
) -> None:
    # Given a run whose first updates are hostile, as many as the rule has to withstand
    driver = Driver(aggregation={"deadline_s": 10.0, **rule}, task={"clients": 12})
    bad = rule.get("byzantine_updates", 1)
    assert driver.experiment.min_updates == least
    for sent in range(1, least):
        driver.give(tensors=weights(-1e6 if sent <= bad else 1.0))
        # Then a deadline with fewer than the rule needs waits on
        assert none(MakeVersion, driver.wait(10))
    # When there are so many, it steps
    effects = driver.give(tensors=weights(1.0))
    made = only(MakeVersion, driver.wait(10) if none(MakeVersion, effects) else effects)
    # Then to what the others have learned
    np.testing.assert_allclose(made.state["model/trainable/0"], 1.0, rtol=1e-6)


@each_rule
@pytest.mark.parametrize("quorum", range(1, 7))
def test_a_quorum_that_cannot_withstand_one_hostile_update_is_refused(
    name: str, quorum: int
) -> None:
    # Given each rule with its defaults, and the smallest quorum that does
    tables = {"aggregation": {"strategy": name, "quorum": quorum}}
    least = 3 if name == "median" else 5
    if quorum < least:
        with pytest.raises(ValidationError, match=rf"set aggregation\.quorum to {least} or more"):
            Experiment.model_validate(tables)
        return
    # Then whoever is let in takes no part of the hostile one
    rows = np.ones((quorum, 3), np.float32)
    rows[0] = -1e6
    strategy = make_strategy(Experiment.model_validate(tables))
    np.testing.assert_allclose(aggregated(strategy, rows), 1.0, rtol=1e-6)


@each_rule
def test_a_step_needs_no_more_memory_than_the_next_model_and_a_little_scratch(name: str) -> None:
    # Given a full buffer of ten updates of a million numbers
    model: Tensors = {"trainable/0": np.zeros(1_000_000, np.float32)}
    rng = np.random.default_rng(0)
    strategy = RULES[name]
    state = strategy.init(model)
    for turn in range(10):
        sent = rng.normal(size=1_000_000).astype(np.float32)
        state = strategy.accept(state, update_of(sent, turn), 0)

    # When the buffer is closed
    tracemalloc.start()
    try:
        strategy.step(state)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # Then 4 MB are the new model, and the rest is blocks that stay in the cache
    assert peak < 4_000_000 + 4 * 2**20


def test_a_buffer_that_no_checkpoint_could_hold_ends_the_run_with_one_line() -> None:
    # Given a model of 5,000 tensors, and files that hold 20,000
    model: Tensors = {f"trainable/{i}": np.zeros(1, np.float32) for i in range(5000)}
    state = Median(STEP).init(model)
    update = update_of(np.zeros(1, np.float32), 0).model_copy(update={"tensors": model})
    state = Median(STEP).accept(state, update, 0)
    state = Median(STEP).accept(state, update, 0)
    with pytest.raises(UserError, match=r"holds no more than 2 of this model: choose a smaller"):
        Median(STEP).accept(state, update, 0)


def test_a_server_optimizer_may_follow_a_rule() -> None:
    strategy = Median(Adaptive(adam, 0.1, 0.9, 0.99, 1e-3))
    rows = np.array([[1.0], [2.0], [900.0]], np.float32)
    state = strategy.init({"trainable/0": np.zeros(1, np.float32)})
    for turn, row in enumerate(rows):
        state = strategy.accept(state, update_of(row, turn), 0)
    got = strategy.step(state)
    assert got["server/m/trainable/0"][0] == np.float32(0.1 * 2)
