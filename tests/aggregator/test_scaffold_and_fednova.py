"""What holds for the two strategies whose updates bring more than the model's tensors."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fluffle.aggregator.strategies.base import State, Strategy, broadcast_of, model_of, update_spec
from fluffle.aggregator.strategies.fedavg import FedAvg
from fluffle.aggregator.strategies.fednova import FedNova
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.aggregator.strategies.scaffold import Scaffold
from fluffle.schemas import ClientUpdate, Experiment, Run, Tensors
from fluffle.schemas.tensors import group, spec

RUN = Run(run_id="r", run_started=0, epoch=1)
CLIENTS = 20


def model(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        "trainable/0": rng.normal(size=(3, 4)).astype(np.float32),
        "trainable/1": rng.normal(size=5).astype(np.float32),
        "non_trainable/0": rng.uniform(0.1, 3, 5).astype(np.float32),
    }


def update(tensors: Tensors, examples: int = 10) -> ClientUpdate:
    return ClientUpdate(
        run=RUN,
        update_id="u",
        client="c",
        turn=1,
        base_version=0,
        worker="w",
        sends="delta",
        examples=examples,
        tensors=tensors,
    )


def stepped(strategy: Strategy, state: State, updates: list[ClientUpdate]) -> State:
    for one in updates:
        state = strategy.accept(state, one, 0)
    return strategy.step(state)


def control(seed: int) -> Tensors:
    change = model(seed)
    return {"control/0": change["trainable/0"], "control/1": change["trainable/1"]}


def as_weights(base: Tensors, sent: Tensors) -> Tensors:
    """What a client that sends this delta has trained, in float64."""
    return {
        k: a.astype(float) + (base[k].astype(float) if k.startswith("trainable/") else 0)
        for k, a in sent.items()
    }


def assert_close(got: Tensors, expected: Tensors) -> None:
    for key, array in expected.items():
        # A sum can cancel: the error is that of the float64 sums, far below float32's last bit.
        np.testing.assert_allclose(got[key], array, rtol=1.2e-7, atol=1e-12)


rounds = st.lists(st.tuples(st.integers(0, 2**32), st.integers(1, 8000)), min_size=1, max_size=12)


@given(rounds)
def test_scaffolds_first_round_is_fedavgs(told: list[tuple[int, int]]) -> None:
    # Given clients that have trained uncorrected, as all do when every control variate is zero
    base, sent = model(1), [model(seed) for seed, _ in told]
    scaffold = Scaffold(1.0, CLIENTS, "II")
    got = stepped(scaffold, scaffold.init(base), [update({**s, **control(7)}) for s in sent])
    # Then the model is FedAvg's, with clients that weigh the same
    fedavg = FedAvg("uniform")
    expected = stepped(fedavg, fedavg.init(base), [update(as_weights(base, s)) for s in sent])
    assert_close(model_of(got), model_of(expected))


@given(rounds, st.floats(1, 1e6))
def test_fednova_is_fedavg_where_clients_do_the_same_work(
    told: list[tuple[int, int]], norm: float
) -> None:
    base, sent = model(1), [(model(seed), n) for seed, n in told]
    nova, fedavg = FedNova(), FedAvg("examples")
    work: Tensors = {"fednova/norm": np.array(norm)}
    got = stepped(nova, nova.init(base), [update({**s, **work}, n) for s, n in sent])
    weights = [update(as_weights(base, s), n) for s, n in sent]
    expected = stepped(fedavg, fedavg.init(base), weights)
    for key, array in model_of(expected).items():
        np.testing.assert_allclose(model_of(got)[key], array, rtol=3e-7, atol=1e-10)


def test_fednova_takes_the_direction_of_a_unit_of_work_and_the_length_of_the_mean() -> None:
    # Given a client that did one step, and another with as many examples that did nine in line
    base = {"trainable/0": np.zeros(2, np.float32)}
    one: Tensors = {"trainable/0": np.array([1, 0], np.float32), "fednova/norm": np.array(1.0)}
    nine: Tensors = {"trainable/0": np.array([0, 9], np.float32), "fednova/norm": np.array(9.0)}
    nova = FedNova()
    got = model_of(stepped(nova, nova.init(base), [update(one), update(nine)]))
    # Then both count the same: five steps of (1, 1) / 2, where FedAvg goes (0.5, 4.5)
    assert got["trainable/0"].tolist() == [2.5, 2.5]


@given(rounds, st.randoms())
def test_the_order_of_arrival_moves_no_float32_by_more_than_its_last_bit(
    told: list[tuple[int, int]], random: Random
) -> None:
    strategies: list[Strategy] = [Scaffold(0.7, CLIENTS, "I"), FedNova()]
    for strategy in strategies:
        updates = [
            update(
                {
                    **model(seed),
                    **(
                        {"fednova/norm": np.array(1.0 + seed % 50)}
                        if isinstance(strategy, FedNova)
                        else control(seed + 1)
                    ),
                },
                n,
            )
            for seed, n in told
        ]
        first = stepped(strategy, strategy.init(model(0)), updates)
        random.shuffle(updates)
        second = stepped(strategy, strategy.init(model(0)), updates)
        assert_close(broadcast_of(strategy, first), broadcast_of(strategy, second))


@given(st.lists(st.lists(st.integers(0, CLIENTS - 1), min_size=1, max_size=6), max_size=8))
def test_c_stays_the_mean_of_all_clients_control_variates(turns: list[list[int]]) -> None:
    # Given any clients' turns, in rounds of any size
    scaffold = Scaffold(1.0, CLIENTS, "II")
    state = scaffold.init(model(0))
    own = {i: [np.zeros_like(a) for a in group("control", control(0))] for i in range(CLIENTS)}
    for number, members in enumerate(turns):
        updates = []
        for client in set(members):
            following = group("control", control(1000 * number + client))
            changes = [np.subtract(a, b) for a, b in zip(following, own[client], strict=True)]
            own[client] = [np.add(a, b) for a, b in zip(own[client], changes, strict=True)]
            sent = {f"control/{i}": change for i, change in enumerate(changes)}
            updates.append(update({**model(client), **sent}))
        state = stepped(scaffold, state, updates)
    # Then c is their mean: what float32 rounds away per client and round stays below 1e-6
    for i, c in enumerate(group("server/control", state)):
        mean = np.mean([own[client][i].astype(float) for client in range(CLIENTS)], axis=0)
        np.testing.assert_allclose(c, mean, atol=1e-6)


def test_what_is_kept_of_c_is_float64_and_what_goes_out_has_the_models_dtypes() -> None:
    scaffold = Scaffold(1.0, CLIENTS, "II")
    state = scaffold.init(model(0))
    out = broadcast_of(scaffold, state)
    assert list(out) == [*model(0), "control/0", "control/1"]
    assert spec(out) == update_spec(scaffold, model(0))
    assert {array.dtype.name for array in group("server/control", state)} == {"float64"}


@pytest.mark.parametrize(
    ("aggregation", "training", "says"),
    [
        ({"strategy": "scaffold"}, {}, "plain SGD"),  # Adam is the default
        ({"strategy": "scaffold"}, {"optimizer": "sgd", "momentum": 0.9}, "plain SGD"),
        ({"strategy": "scaffold"}, {"optimizer": "sgd", "proximal_mu": 0.1}, "plain SGD"),
        ({"strategy": "fednova"}, {"optimizer": "adam"}, "no other optimizer"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(
    aggregation: dict[str, str], training: dict[str, object], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        Experiment.model_validate({"aggregation": aggregation, "training": training})


def test_the_option_is_what_clients_are_asked_for() -> None:
    asked = []
    for option in ({}, {"control_option": "I"}, {"control_option": "II"}):
        tables = {
            "training": {"optimizer": "sgd"},
            "aggregation": {"strategy": "scaffold", **option},
        }
        strategy = make_strategy(Experiment.model_validate(tables))
        assert isinstance(strategy, Scaffold)
        asked.append(strategy.asks)
    assert asked == ["control-variate-II", "control-variate-I", "control-variate-II"]
