"""What holds for strategies whatever the updates are."""

from __future__ import annotations

import copy
import math
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import ValidationError

from fluffle.aggregator.strategies.base import Strategy, model_of
from fluffle.aggregator.strategies.ca2fl import Ca2fl
from fluffle.aggregator.strategies.fedasync import FedAsync
from fluffle.aggregator.strategies.fedavg import FedAvg
from fluffle.aggregator.strategies.fedbuff import FedBuff, FedBuffParameters
from fluffle.aggregator.strategies.fedopt import FedOpt
from fluffle.aggregator.strategies.fold import add_scaled
from fluffle.aggregator.strategies.krum import Krum
from fluffle.aggregator.strategies.median import Median, TrimmedMean
from fluffle.aggregator.strategies.norm_bounding import NormBounding
from fluffle.aggregator.strategies.optimizers import (
    Adaptive,
    Momentum,
    SecondMoment,
    Sgd,
    adagrad,
    adam,
    yogi,
)
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.aggregator.strategies.ringmaster import Ringmaster
from fluffle.aggregator.strategies.staleness import constant, hinge, polynomial
from fluffle.schemas import ClientUpdate, Experiment, Run, Tensors
from fluffle.schemas.codec import pack, unpack

Floats = NDArray[np.float32]
RUN = Run(run_id="r", run_started=0, epoch=1)
STRATEGIES: dict[str, Strategy] = {
    "fedavg": FedAvg("examples"),
    "fedavg-uniform": FedAvg("uniform"),
    "fedbuff": FedBuff(Sgd(0.7), polynomial(0.5)),
    "fedasync": FedAsync(0.6, hinge(10, 1)),
    "fedavgm": FedOpt(Momentum(0.7, 0.9), "uniform"),
    "fedadam": FedOpt(Adaptive(adam, 0.1, 0.9, 0.99, 1e-3), "examples", polynomial(0.5)),
    "fedbuff-yogi": FedBuff(Adaptive(yogi, 0.1, 0.9, 0.99, 1e-3), polynomial(0.5)),
    "median": Median(Sgd(0.7), s=polynomial(0.5)),
    "trimmed-mean": TrimmedMean(Sgd(0.7), 0.25, polynomial(0.5)),
    "krum": Krum(Sgd(0.7), 1),
    "multi-krum": Krum(Sgd(0.7), 1, None, polynomial(0.5)),
    "ca2fl": Ca2fl(Sgd(0.7), 10, 10**6, polynomial(0.5)),
    "norm-bounding": NormBounding(Sgd(0.7), 1.5, polynomial(0.5)),
    "fedbuff-adagrad": FedBuff(Adaptive(adagrad, 0.1, 0.0, 0.99, 1e-3), polynomial(0.5)),
}
ONE_SUM = sorted(STRATEGIES.keys() - {"median", "trimmed-mean", "krum", "multi-krum"})
each_strategy = pytest.mark.parametrize("name", sorted(STRATEGIES))


def update_of(tensors: Tensors, examples: int = 10, turn: int = 1) -> ClientUpdate:
    return ClientUpdate(
        run=RUN,
        update_id="u",
        client="c",
        turn=turn,
        base_version=0,
        worker="w",
        sends="delta",
        examples=examples,
        tensors=tensors,
    )


def tensors_of(seed: int, grid: bool = False) -> Tensors:
    """A small model; on a grid of 1/1024 every product and sum below is exact in float64."""
    rng = np.random.default_rng(seed)
    tensors: Tensors = {
        "trainable/0": rng.normal(size=(3, 4)).astype(np.float32),
        "trainable/1": rng.normal(size=5).astype(np.float32),
        "non_trainable/0": rng.uniform(0.1, 3, 5).astype(np.float32),
    }
    if grid:
        tensors = {k: (np.rint(a * 1024) / 1024).astype(np.float32) for k, a in tensors.items()}
    return tensors


def fold(strategy: Strategy, initial: Tensors, updates: list[tuple[ClientUpdate, int]]) -> Tensors:
    state = strategy.init(initial)
    for update, staleness in updates:
        state = strategy.accept(state, update, staleness)
    return model_of(strategy.step(state))


arrivals = st.lists(
    st.tuples(st.integers(0, 2**32), st.integers(1, 8000), st.integers(0, 9)),
    min_size=1,
    max_size=12,
)


@given(arrivals, st.randoms())
@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - {"fedasync"}))
def test_the_order_of_arrival_moves_no_float32_by_more_than_its_last_bit(
    name: str, told: list[tuple[int, int, int]], random: Random
) -> None:
    updates = [(update_of(tensors_of(seed), n, i), tau) for i, (seed, n, tau) in enumerate(told)]
    other = updates[::-1]
    random.shuffle(other)
    first, second = (fold(STRATEGIES[name], tensors_of(0), order) for order in (updates, other))
    for key, array in first.items():
        # A sum can cancel: the error is that of the float64 sum, far below float32's last bit.
        np.testing.assert_allclose(array, second[key], rtol=1.2e-7, atol=1e-12)


@given(arrivals, st.randoms())
@pytest.mark.parametrize("strategy", [FedAvg("examples"), FedBuff(Sgd(1.0), constant)])
def test_where_products_are_exact_the_order_of_arrival_moves_no_byte(
    strategy: Strategy, told: list[tuple[int, int, int]], random: Random
) -> None:
    updates = [(update_of(tensors_of(seed, grid=True), n), tau) for seed, n, tau in told]
    other = updates[::-1]
    random.shuffle(other)
    first, second = (fold(strategy, tensors_of(0), order) for order in (updates, other))
    for key, array in first.items():
        assert array.tobytes() == second[key].tobytes()


@given(st.integers(0, 2**32), st.integers(0, 50), st.floats(0.01, 10))
def test_fedbuff_with_one_fresh_or_unweighted_update_is_the_model_plus_eta_times_its_delta(
    seed: int, tau: int, eta: float
) -> None:
    model, sent = tensors_of(1), tensors_of(seed)
    got = fold(FedBuff(Sgd(eta), constant), model, [(update_of(sent), tau)])
    for key in ("trainable/0", "trainable/1"):
        expected = model[key].astype(float) + eta * sent[key].astype(float)
        assert np.array_equal(got[key], expected.astype(np.float32))
    assert np.array_equal(got["non_trainable/0"], sent["non_trainable/0"])


def test_fedbuff_divides_by_the_number_of_updates_and_not_by_their_weights() -> None:
    # Given three equally stale updates with the same delta
    model, sent = tensors_of(1), tensors_of(2)
    got = fold(FedBuff(Sgd(1.0), polynomial(0.5)), model, [(update_of(sent), 3)] * 3)

    # Then the step is half as long (1 / sqrt(1 + 3)), as a normalised mean would not make it
    expected = model["trainable/0"] + 0.5 * sent["trainable/0"].astype(float)
    np.testing.assert_allclose(got["trainable/0"], expected, rtol=1e-6)

    # But batch-norm statistics are averaged, and no server learning rate touches them
    np.testing.assert_allclose(got["non_trainable/0"], sent["non_trainable/0"], rtol=1e-6)


def test_fedasync_never_wears_its_mixing_weight_down() -> None:
    strategy, model, sent = FedAsync(0.6, polynomial(0.5)), tensors_of(1), tensors_of(2)
    state = strategy.init(model)
    for _ in range(5):
        state = strategy.step(strategy.accept(state, update_of(sent), 8))  # alpha_t = 0.2
    w, x = model["trainable/0"].astype(float), sent["trainable/0"].astype(float)
    expected = x + (1 - 0.2) ** 5 * (w - x)
    np.testing.assert_allclose(model_of(state)["trainable/0"], expected, rtol=1e-5, atol=1e-6)


def test_fedasync_mixes_one_after_the_other_what_arrives_before_a_step() -> None:
    strategy, model, (a, b) = FedAsync(0.5, constant), tensors_of(1), (tensors_of(2), tensors_of(3))
    got = fold(strategy, model, [(update_of(a), 0), (update_of(b), 0)])
    expected = 0.25 * model["trainable/0"] + 0.25 * a["trainable/0"] + 0.5 * b["trainable/0"]
    np.testing.assert_allclose(got["trainable/0"], expected, rtol=1e-5, atol=1e-6)


@each_strategy
def test_same_inputs_give_the_same_bytes_and_only_the_owned_sums_change(name: str) -> None:
    # Given inputs that nobody may write into, as a decoded message has them
    strategy, model = STRATEGIES[name], tensors_of(1)
    updates = [update_of(tensors_of(seed)) for seed in (2, 3)]
    for tensors in (model, *(update.tensors for update in updates)):
        for array in tensors.values():
            array.flags.writeable = False
    before = copy.deepcopy((model, updates))

    # When they are folded twice, and the closed buffer is stepped twice
    results = []
    for _ in range(2):
        state = strategy.init(model)
        for update in updates:
            state = strategy.accept(state, update, 1)
        closed = copy.deepcopy(state)
        results += [strategy.step(state), strategy.step(state)]
        assert list(state) == list(closed)
        assert all(state[key].tobytes() == array.tobytes() for key, array in closed.items())

    # Then all results have the same bytes and dtypes, no buffer, and the inputs are as before
    for result in results:
        kept = ("server/", "cache/")
        assert [k for k in result if not k.startswith(kept)] == [f"model/{k}" for k in model]
        for key, array in result.items():
            assert array.tobytes() == results[0][key].tobytes()
            assert array.dtype == (np.float64 if key.startswith("server/h/") else np.float32)
    for old, new in zip(
        [before[0], *(u.tensors for u in before[1])],
        [model, *(u.tensors for u in updates)],
        strict=True,
    ):
        assert all(old[key].tobytes() == new[key].tobytes() for key in old)


@pytest.mark.parametrize("name", ONE_SUM)
def test_one_accumulator_is_added_to_in_place(name: str) -> None:
    strategy = STRATEGIES[name]
    state = strategy.accept(strategy.init(tensors_of(1)), update_of(tensors_of(2)), 0)
    sums = {key: array for key, array in state.items() if key.startswith("buffer/sum/")}
    assert len(sums) == 3
    assert all(array.dtype == np.float64 for array in sums.values())
    for seed in (3, 4):
        state = strategy.accept(state, update_of(tensors_of(seed)), 0)
    assert all(state[key] is array for key, array in sums.items())


@each_strategy
def test_a_buffer_that_came_back_from_a_file_goes_on_to_the_same_bytes(name: str) -> None:
    # Given a half-full buffer, written and read again: its arrays are read-only views
    strategy, model = STRATEGIES[name], tensors_of(1)
    half = strategy.accept(strategy.init(model), update_of(tensors_of(2)), 2)
    _, restored = unpack(pack({}, half))
    assert restored is not None
    assert not any(array.flags.writeable for array in restored.values())

    # When both go on
    straight, resumed = (
        strategy.step(strategy.accept(state, update_of(tensors_of(3)), 1))
        for state in (half, restored)
    )

    # Then they end in the same bytes
    assert all(straight[key].tobytes() == resumed[key].tobytes() for key in straight)


@each_strategy
@given(
    first=hnp.arrays(np.float32, 4, elements=st.floats(2.0**-100, 2.0**100, width=32)),
    sent=st.lists(
        st.tuples(
            hnp.arrays(np.float32, 4, elements=st.floats(2.0**-100, 2.0**100, width=32)),
            st.integers(0, 2**40),
            st.integers(0, 1000),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_a_variance_stays_positive_and_within_what_was_sent(
    name: str, first: Floats, sent: list[tuple[Floats, int, int]]
) -> None:
    updates = [
        (update_of({"non_trainable/0": values}, examples), tau) for values, examples, tau in sent
    ]
    got = fold(STRATEGIES[name], {"non_trainable/0": first}, updates)
    stacked = np.stack([first, *(values for values, _, _ in sent)])
    assert (got["non_trainable/0"] > 0).all()
    assert (got["non_trainable/0"] >= stacked.min(axis=0) * (1 - 1e-6)).all()
    assert (got["non_trainable/0"] <= stacked.max(axis=0) * (1 + 1e-6)).all()


@each_strategy
def test_integer_values_are_taken_whole_and_keep_their_dtype(name: str) -> None:
    model: Tensors = {
        "non_trainable/0": np.array(10, np.int64),
        "non_trainable/1": np.array([True]),
    }
    sent: Tensors = {
        "non_trainable/0": np.array(13, np.int64),
        "non_trainable/1": np.array([False]),
    }
    got = fold(STRATEGIES[name], model, [(update_of(sent), 0)])
    assert got["non_trainable/0"].item() == 13
    assert got["non_trainable/1"].tolist() == [False]
    assert [a.dtype.name for a in got.values()] == ["int64", "bool"]


def test_fedavg_over_clients_without_examples_keeps_the_model() -> None:
    model = tensors_of(1)
    got = fold(FedAvg("examples"), model, [(update_of(tensors_of(2), examples=0), 0)])
    assert all(got[key].tobytes() == array.tobytes() for key, array in model.items())


@given(
    hnp.arrays(
        np.float32,
        st.integers(0, 100_000),
        elements=st.just(np.float32(1.1).item()),
        fill=st.just(np.float32(-0.3).item()),
    ),
    st.floats(-10, 10),
)
def test_folding_in_blocks_is_the_plain_float64_formula(values: Floats, weight: float) -> None:
    total = np.linspace(-1, 1, values.size)
    expected = total + weight * values.astype(np.float64)
    add_scaled(total, weight, values)
    assert total.tobytes() == expected.tobytes()


def test_staleness_functions_have_the_values_of_the_paper() -> None:
    assert [constant(tau) for tau in (0, 9)] == [1, 1]
    assert [polynomial(0.5)(tau) for tau in (0, 3, 8)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [hinge(10, 4)(tau) for tau in (0, 4, 5, 6)] == pytest.approx([1, 1, 1 / 11, 1 / 21])


@given(
    st.sampled_from(["constant", "polynomial", "hinge"]),
    st.floats(0, 1e300),
    st.floats(0, 1e300),
    st.integers(0, 2**53),
)
def test_staleness_weights_are_at_most_one_never_grow_and_a_fresh_update_weighs_one(
    kind: str, a: float, b: float, tau: int
) -> None:
    table = {"staleness": kind, "staleness_a": a, "staleness_b": b}
    s = FedBuffParameters.model_validate(table).s
    assert s(0) == 1
    assert 0 <= s(tau + 1) <= s(tau) <= 1
    assert math.isfinite(s(tau))


def test_the_experiment_says_which_strategy_with_which_parameters() -> None:
    def made(**aggregation: object) -> Strategy:
        return make_strategy(Experiment.model_validate({"aggregation": aggregation}))

    assert made(strategy="fedavg", weighting="uniform") == FedOpt(Sgd(1.0), "uniform", constant)
    cohort = {"participation": {"mode": "cohort"}, "aggregation": {"strategy": "fedavg"}}
    assert make_strategy(Experiment.model_validate(cohort)) == FedAvg("examples")
    buffered = made(strategy="fedbuff", server_learning_rate=0.3, staleness_a=2)
    assert isinstance(buffered, FedBuff)
    assert (buffered.optimizer, buffered.s(2), buffered.sends) == (Sgd(0.3), 1 / 9, "delta")
    mixed = made(strategy="fedasync", mixing=0.9, staleness="constant")
    assert mixed == FedAsync(0.9, constant)
    assert mixed.sends == "weights"
    assert made(strategy="fedadam", server_tau=0.01) == FedOpt(
        Adaptive(adam, 0.01, 0.9, 0.99, 0.01), "examples", constant
    )
    assert made(strategy="fedadagrad", server_learning_rate=0.5) == FedOpt(
        Adaptive(adagrad, 0.5, 0.0, 0.0, 1e-3), "examples", constant
    )
    assert made(strategy="fedavgm") == FedOpt(Momentum(1.0, 0.9), "examples", constant)
    assert made(strategy="ringmaster", delay_threshold=4) == Ringmaster(Sgd(1.0), constant)
    assert made(strategy="median") == Median(Sgd(1.0), s=constant)
    assert made(strategy="trimmed-mean", trim=0.1, quorum=10) == TrimmedMean(
        Sgd(1.0), 0.1, constant
    )
    assert made(strategy="krum", quorum=8) == Krum(Sgd(1.0), 2, 1, constant)
    assert made(strategy="multi-krum", quorum=8, byzantine_updates=1) == Krum(Sgd(1.0), 1, None)
    assert made(strategy="norm-bounding", norm_bound=3) == NormBounding(Sgd(1.0), 3, constant)
    buffered = made(strategy="fedbuff", server_optimizer="yogi", staleness="constant")
    assert buffered == FedBuff(Adaptive(yogi, 0.01, 0.9, 0.99, 1e-3), constant)


@pytest.mark.parametrize(
    ("aggregation", "said"),
    [
        ({"strategy": "fedadm"}, "did you mean fedadam?"),
        ({"strategy": "ringmaster"}, "ringmaster needs aggregation.delay_threshold"),
        ({"strategy": "ringmaster", "delay_threshold": 3, "quorum": 2}, "of every update"),
        (
            {"strategy": "fedavg", "server_optimizer": "adam"},
            "does not go with fedavg, which takes",
        ),
        ({"strategy": "krum", "quorum": 2}, "krum needs 5 updates to withstand 1 bad one"),
        ({"strategy": "multi-krum", "quorum": 4}, "set aggregation.quorum to 5 or more"),
        ({"strategy": "trimmed-mean"}, "trimmed-mean needs 5 updates to withstand 1 bad one"),
        ({"strategy": "trimmed-mean", "trim": 0.3}, "set aggregation.quorum to 4 or more"),
        ({"strategy": "trimmed-mean", "trim": 0.0}, "trim"),
        ({"strategy": "median", "quorum": 2}, "median needs 3 updates to withstand 1 bad one"),
        ({"strategy": "median", "byzantine_updates": 2}, "median needs 5 updates"),
        (
            {"strategy": "multi-krum", "quorum": 6, "byzantine_updates": 2},
            "multi-krum needs 7 updates to withstand 2 bad ones",
        ),
        ({"strategy": "norm-bounding"}, "norm-bounding needs aggregation.norm_bound"),
    ],
)
def test_what_a_strategy_cannot_do_is_said_before_it_starts(
    aggregation: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate({"aggregation": aggregation})
    assert said in str(caught.value)


def test_rennala_counts_fresh_updates_alone_and_never_fewer_than_its_batch() -> None:
    experiment = Experiment.model_validate(
        {"aggregation": {"strategy": "rennala", "quorum": 4, "server_learning_rate": 0.5}}
    )
    assert experiment.max_staleness == 0
    assert experiment.min_updates == 4
    with pytest.raises(ValueError, match="counts no stale updates"):
        Experiment.model_validate({"aggregation": {"strategy": "rennala", "max_staleness": 2}})


def test_ringmaster_bounds_the_staleness_below_its_threshold() -> None:
    def bound(**aggregation: object) -> int | None:
        table = {"strategy": "ringmaster", "delay_threshold": 5, **aggregation}
        return Experiment.model_validate({"aggregation": table}).max_staleness

    assert (bound(), bound(max_staleness=2), bound(max_staleness=9)) == (4, 2, 4)


@given(st.integers(0, 2**32), st.floats(0.01, 2))
def test_a_server_optimizer_that_forgets_at_once_is_a_plain_step(seed: int, eta: float) -> None:
    model, sent = tensors_of(1), tensors_of(seed)
    plain = fold(FedBuff(Sgd(eta), constant), model, [(update_of(sent), 0)])
    forgetful = fold(FedBuff(Momentum(eta, 0.0), constant), model, [(update_of(sent), 0)])
    assert all(plain[key].tobytes() == array.tobytes() for key, array in forgetful.items())


@pytest.mark.parametrize(
    "extra",
    [
        {"update": [{"kind": "cast", "dtype": "float16"}]},
        {"privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0}},
    ],
)
@pytest.mark.parametrize("mode", ["concurrent", "cohort"])
def test_fedavg_means_the_same_whatever_else_is_asked_for(mode: str, extra: dict[str, Any]) -> None:
    # Given fedavg with and without steps on the way, or privacy
    tables = {
        "participation": {"mode": mode},
        "aggregation": {"strategy": "fedavg", "weighting": "uniform"},
    }
    plain, other = (make_strategy(Experiment.model_validate({**tables, **e})) for e in ({}, extra))
    # When clients bring what they learned, in concurrent mode from an older model than the present
    base, present = tensors_of(1), tensors_of(2)
    staleness = 3 if mode == "concurrent" else 0
    begun = base if staleness else present
    local = [tensors_of(seed) for seed in (3, 4)]
    deltas = [
        {k: a - begun[k] if k.startswith("trainable") else a for k, a in tensors.items()}
        for tensors in local
    ]
    brought = {"weights": local, "delta": deltas}
    made = [
        fold(strategy, present, [(update_of(t), staleness) for t in brought[strategy.sends]])
        for strategy in (plain, other)
    ]
    # Then both make the same of it: what was learned since stays
    for key, array in made[0].items():
        np.testing.assert_allclose(array, made[1][key], rtol=1e-5, atol=1e-6)
        if key.startswith("trainable"):
            learned = np.mean([d[key] for d in deltas], axis=0, dtype=np.float64)
            np.testing.assert_allclose(array, present[key] + learned, rtol=1e-5, atol=1e-5)


def test_the_mean_of_fedopt_is_fedavgs_and_weights_scale() -> None:
    # Given clients' weights, and the same as deltas
    model = tensors_of(1)
    local = [tensors_of(seed) for seed in (2, 3, 4)]
    deltas = [
        {k: a - model[k] if k.startswith("trainable") else a for k, a in tensors.items()}
        for tensors in local
    ]

    # When FedAvg averages the weights, and FedOpt with a plain step of 1 the deltas
    averaged = fold(
        FedAvg("examples"),
        model,
        [(update_of(t, n), 0) for t, n in zip(local, (1, 5, 9), strict=True)],
    )
    stepped, scaled = (
        fold(
            FedOpt(Sgd(1.0), "examples"),
            model,
            [(update_of(d, m * n), 0) for d, n in zip(deltas, (1, 5, 9), strict=True)],
        )
        for m in (1, 1000)
    )

    # Then they agree, and so they do for a thousand times the examples
    for key, array in averaged.items():
        np.testing.assert_allclose(array, stepped[key], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scaled[key], stepped[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("second_moment", [adam, yogi, adagrad])
def test_no_server_optimizer_touches_batch_norm_statistics_or_keeps_anything_for_them(
    second_moment: SecondMoment,
) -> None:
    strategy = FedOpt(Adaptive(second_moment, 0.1, 0.9, 0.99, 1e-3), "uniform")
    model, sent = tensors_of(1), tensors_of(2)
    state = strategy.step(strategy.accept(strategy.init(model), update_of(sent), 0))
    assert np.array_equal(model_of(state)["non_trainable/0"], sent["non_trainable/0"])
    kept = [key for key in state if key.startswith("server/")]
    assert sorted(kept) == [f"server/{s}/trainable/{i}" for s in "mv" for i in range(2)]


@given(hnp.arrays(np.float32, 7, elements=st.floats(-1e3, 1e3, width=32)), st.integers(1, 40))
def test_the_second_moments_never_fall_to_zero(values: Floats, steps: int) -> None:
    model: Tensors = {"trainable/0": np.zeros(7, np.float32)}
    for second_moment in (adam, yogi, adagrad):
        strategy = FedOpt(Adaptive(second_moment, 0.1, 0.9, 0.9, 1e-3), "uniform")
        state = strategy.init(model)
        for step in range(steps):
            sent: Tensors = {"trainable/0": values * np.float32(step % 3)}
            state = strategy.step(strategy.accept(state, update_of(sent), 0))
        assert (state["server/v/trainable/0"] > 0).all()
        assert np.isfinite(state["model/trainable/0"]).all()
