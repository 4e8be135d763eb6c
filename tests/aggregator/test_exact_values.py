"""Weights of any dtype and shape through every strategy: what cannot be averaged stays exact."""

from __future__ import annotations

from itertools import permutations

import ml_dtypes
import numpy as np
import pytest

from fluffle.aggregator.coordinator.admission import finite
from fluffle.aggregator.strategies.base import model_of, update_spec
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.schemas import ClientUpdate, Experiment, Run, Tensors
from fluffle.schemas.aggregation import strategies
from fluffle.schemas.codec import pack, unpack
from fluffle.schemas.tensors import group, named, spec

RUN = Run(run_id="r", run_started=0, epoch=1)
#: Beyond what float64, let alone float32, can hold.
IDS = np.array([2**53 + 1, 2**62 + 12345, -(2**60) - 7], np.int64)
MODEL: Tensors = {
    "trainable/0": np.array([[1.0, 2.0]], np.float32),
    "trainable/1": np.array(0.5, np.float32),
    "trainable/2": np.zeros((0, 3), np.float32),
    "trainable/3": np.array([1.0, -1.0], np.float64),
    "trainable/4": np.array([1.0, -1.0], ml_dtypes.bfloat16),
    "non_trainable/0": IDS,
    "non_trainable/1": np.array([True, False]),
    "non_trainable/2": np.array(7, np.uint8),
    "non_trainable/3": np.array([4.0], ml_dtypes.bfloat16),
}
NEEDS = {
    "ringmaster": {"delay_threshold": 6},
    "norm-bounding": {"norm_bound": 1.0},
    **{name: {"byzantine_updates": 0} for name in ("krum", "multi-krum", "trimmed-mean")},
}


def made(strategy: str) -> Experiment:
    one = strategy in ("fedasync", "ringmaster")
    aggregation = {"strategy": strategy, "quorum": 1 if one else 3, **NEEDS.get(strategy, {})}
    training = {"optimizer": "sgd"}
    return Experiment.model_validate({"aggregation": aggregation, "training": training})


def update(
    client: int, examples: int, sends: str, changed: Tensors, wanted: Tensors
) -> ClientUpdate:
    zero = {k: np.zeros_like(a) if sends == "delta" else a for k, a in MODEL.items()}
    values = {k: a for k, a in MODEL.items() if k.startswith("non_trainable/")}
    return ClientUpdate(
        run=RUN,
        update_id=f"r:{client + 1}:{client}",
        client=str(client),
        turn=client + 1,
        base_version=0,
        worker="w",
        sends=sends,  # type: ignore[arg-type]
        examples=examples,
        tensors={**zero, **values, **wanted, **changed},
    )


@pytest.mark.parametrize("name", list(strategies()))
def test_what_nobody_changed_comes_back_bit_equal(name: str) -> None:
    # Given a model with scalars, bfloat16, float64, large integers, truth values and nothing
    experiment = made(name)
    strategy = make_strategy(experiment)
    state = strategy.init(MODEL)
    wanted = {k: np.zeros(s, d) for k, (d, s) in update_spec(strategy, MODEL).items()}
    extra = {k: a for k, a in wanted.items() if k not in MODEL}

    # When two versions are made of updates that change nothing
    for _ in range(2):
        for client in range(experiment.quorum):
            sent = update(client, 7 + client, strategy.sends, {}, extra)
            assert finite(sent.tensors)
            state = strategy.accept(state, sent, client % 2)
        state = strategy.step(unpack(pack({}, state))[1] or {})  # as out of a checkpoint

    # Then it is the same to the last bit, in the same dtypes and shapes
    following = model_of(state)
    assert spec(following) == spec(MODEL)
    for key, array in MODEL.items():
        assert following[key].tobytes() == array.tobytes(), key


@pytest.mark.parametrize("name", ["fedavg", "fedbuff", "scaffold", "fednova", "ca2fl"])
def test_of_changed_integers_the_heaviest_updates_are_taken_whole(name: str) -> None:
    # Given three updates with counters of their own, the second from the most examples
    experiment = made(name)
    strategy = make_strategy(experiment)
    wanted = {k: np.zeros(s, d) for k, (d, s) in update_spec(strategy, MODEL).items()}
    extra = {k: a for k, a in wanted.items() if k not in MODEL}
    sent = [
        update(client, examples, strategy.sends, {"non_trainable/0": IDS + client}, extra)
        for client, examples in enumerate((5, 50, 6))
    ]

    # When they are folded in any order
    results = set()
    for order in permutations(sent):
        state = strategy.init(MODEL)
        for one in order:
            state = strategy.accept(state, one, 0)
        results.add(model_of(strategy.step(state))["non_trainable/0"].tobytes())

    # Then one of them is the next version's: where all weigh the same, the one with larger values
    by_examples = name in ("fedavg", "fednova")
    assert results == {(IDS + (1 if by_examples else 2)).tobytes()}


def test_the_median_of_integers_is_one_that_somebody_sent() -> None:
    strategy = make_strategy(made("median"))
    state = strategy.init(MODEL)
    for client, value in enumerate((3, 900, 4)):
        changed = {"non_trainable/0": IDS + value}
        state = strategy.accept(state, update(client, 1, "delta", changed, {}), 0)
    assert (model_of(strategy.step(state))["non_trainable/0"] == IDS + 4).all()


def test_fedasync_takes_the_newest() -> None:
    strategy = make_strategy(made("fedasync"))
    state = strategy.init(MODEL)
    changed = {"non_trainable/0": IDS + 1}
    state = strategy.step(strategy.accept(state, update(0, 1, "weights", changed, {}), 0))
    assert (model_of(state)["non_trainable/0"] == IDS + 1).all()


def test_bfloat16_that_is_not_finite_is_found() -> None:
    for value in (np.nan, np.inf, -np.inf):
        assert not finite({"trainable/0": np.array([1.0, value], ml_dtypes.bfloat16)})


def test_three_thousand_small_tensors_are_averaged_and_travel() -> None:
    # Given a model of 3,000 tensors
    arrays = [np.full((3,), i, np.float32) for i in range(3000)]
    model = named("trainable", arrays)
    strategy = make_strategy(made("fedbuff"))
    state = strategy.init(model)

    # When an update adds one to all of them
    deltas = named("trainable", [np.ones(3, np.float32)] * 3000)
    sent = update(0, 1, "delta", {}, {}).model_copy(update={"tensors": deltas})
    state = strategy.step(strategy.accept(state, sent, 0))

    # Then the next version has it, and comes through the codec as it is
    assert [a.tolist() for a in group("model/trainable", state)][2999] == [3000.0] * 3
    back = unpack(pack({}, state))[1]
    assert back is not None
    assert spec(back) == spec(state)
