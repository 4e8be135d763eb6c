"""What is done to an update on its way out, and undone at the server."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fluffle.schemas import Experiment, Tensors, transforms
from fluffle.schemas.steps import Step, Steps
from fluffle.schemas.tensors import spec
from fluffle.schemas.transforms import Draws

STEPS: TypeAdapter[tuple[Step, ...]] = TypeAdapter(Steps)

EVERY: dict[str, list[dict[str, Any]]] = {
    "clip": [{"kind": "clip", "norm": 1.0}],
    "noise": [{"kind": "noise", "std": 0.1}],
    "float16": [{"kind": "cast", "dtype": "float16"}],
    "bfloat16": [{"kind": "cast", "dtype": "bfloat16"}],
    "top_k": [{"kind": "top_k", "share": 0.2}],
    "random_k": [{"kind": "random_k", "share": 0.2, "error_feedback": False}],
    **{f"{bits} bits": [{"kind": "quantise", "bits": bits}] for bits in (1, 2, 4, 8)},
    "all": [
        {"kind": "clip", "norm": 1.0},
        {"kind": "noise", "std": 0.01},
        {"kind": "top_k", "share": 0.3},
        {"kind": "quantise", "bits": 4},
    ],
}


def steps(*tables: dict[str, Any]) -> tuple[Step, ...]:
    return STEPS.validate_python(list(tables))


def draws(seed: int) -> Draws:
    return Draws(np.random.default_rng([1, seed]), np.random.default_rng([2, seed]))


def delta(seed: int = 0, scale: float = 1.0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        "trainable/0": (scale * rng.normal(size=(7, 5))).astype(np.float32),
        "trainable/1": (scale * rng.normal(size=11)).astype(np.float32),
        "non_trainable/0": rng.normal(size=3).astype(np.float32),
    }


def flat(tensors: Tensors) -> np.ndarray[Any, np.dtype[np.float64]]:
    trainable = [a.reshape(-1) for name, a in tensors.items() if name.startswith("trainable/")]
    return np.concatenate(trainable).astype(np.float64)


def there_and_back(chain: tuple[Step, ...], tensors: Tensors, seed: int = 0) -> Tensors:
    sent, _ = transforms.apply(chain, tensors, draws(seed), {})
    assert spec(sent) == transforms.sent_spec(chain, spec(tensors))
    return transforms.restore(chain, sent, spec(tensors))


@pytest.mark.parametrize("name", EVERY)
def test_what_comes_back_has_the_models_spec_and_its_statistics_unchanged(name: str) -> None:
    before = delta()
    after = there_and_back(steps(*EVERY[name]), before)
    assert spec(after) == spec(before)
    assert list(after) == list(before)
    assert np.array_equal(after["non_trainable/0"], before["non_trainable/0"])


@pytest.mark.parametrize(
    "name", ["float16", "bfloat16", "random_k", "1 bits", "2 bits", "4 bits", "8 bits"]
)
def test_the_mean_over_many_draws_is_the_delta_itself(name: str) -> None:
    # Given one delta, restored from many independent draws
    chain, before, many = steps(*EVERY[name]), delta(3), 4000
    restored = np.array([flat(there_and_back(chain, before, seed)) for seed in range(many)])
    # Then the mean is the delta, to five standard errors in every coordinate
    error = np.abs(restored.mean(axis=0) - flat(before))
    standard_error = restored.std(axis=0) / math.sqrt(many)
    assert (error <= 5 * standard_error + 1e-6).all()
    assert restored.std(axis=0).max() > 0, "this rounds, so it has to vary"


@given(seed=st.integers(0, 2**20), bits=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_a_quantised_value_is_one_level_off_at_most(seed: int, bits: int) -> None:
    before = delta(seed, scale=10.0 ** (seed % 7 - 3))
    after = there_and_back(steps({"kind": "quantise", "bits": bits}), before, seed)
    for name in ("trainable/0", "trainable/1"):
        level = np.ptp(before[name].astype(np.float64)) / (2**bits - 1)
        assert np.abs(after[name] - before[name]).max() <= level * 1.001


def test_bits_are_what_travels() -> None:
    # Given 46 trainable values (35 and 11) and three statistics, as float32
    sizes = {}
    for name, tables in EVERY.items():
        sent, _ = transforms.apply(steps(*tables), delta(), draws(0), {})
        sizes[name] = sum(array.nbytes for array in sent.values())
    # Then 12 bytes of statistics, and for each quantised tensor a range of 8
    assert sizes["clip"] == sizes["noise"] == 46 * 4 + 12
    assert sizes["float16"] == sizes["bfloat16"] == 46 * 2 + 12
    assert sizes["8 bits"] == 46 + 16 + 12
    assert sizes["1 bits"] == 5 + 2 + 16 + 12
    assert sizes["top_k"] == 9 * (4 + 4) + 12
    assert sizes["random_k"] == 9 * 4 + 4 + 12


def test_clipping_shortens_what_is_longer_and_nothing_else() -> None:
    chain = steps({"kind": "clip", "norm": 2.0})
    long, short = delta(1, scale=5.0), delta(1, scale=1e-3)
    clipped = flat(there_and_back(chain, long))
    assert np.linalg.norm(clipped) == pytest.approx(2.0, rel=1e-6)
    cosine = clipped @ flat(long) / (np.linalg.norm(clipped) * np.linalg.norm(flat(long)))
    assert cosine == pytest.approx(1.0, rel=1e-6)
    assert np.array_equal(flat(there_and_back(chain, short)), flat(short))


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    chain, before = steps({"kind": "noise", "std": 0.5}), {"trainable/0": np.zeros(40_000, "f4")}
    noise = flat(there_and_back(chain, before))
    assert noise.std() == pytest.approx(0.5, rel=0.03)
    assert abs(noise.mean()) < 0.5 * 5 / math.sqrt(noise.size)


@pytest.mark.parametrize("kind", ["top_k", "random_k"])
def test_what_is_sent_and_what_is_kept_add_up_to_everything_so_far(kind: str) -> None:
    # Given a client that sends a tenth of every update and remembers the rest
    chain, memory = steps({"kind": kind, "share": 0.1}), {}
    total, arrived = np.zeros(46), np.zeros(46)
    for turn in range(30):
        update = delta(turn)
        total += flat(update)
        # When it sends one update after the other
        sent, memory = transforms.apply(chain, update, draws(turn), memory)
        arrived += flat(transforms.restore(chain, sent, spec(update)))
        # Then nothing is ever lost: what has not arrived is in the memory
        assert np.allclose(arrived + memory["memory/0"], total, atol=1e-4)


def test_top_k_takes_the_largest() -> None:
    chain = steps({"kind": "top_k", "share": 0.1, "error_feedback": False})
    before = delta(9)
    after = flat(there_and_back(chain, before))
    kept = np.flatnonzero(after)
    assert set(kept) == set(np.argsort(-np.abs(flat(before)))[: len(kept)])
    assert np.array_equal(after[kept], flat(before)[kept])


@pytest.mark.parametrize("indices", [[5, 4, 6], [1, 1, 2], [0, 1, 46], [0, 1, 2**32 - 1]], ids=str)
def test_indices_that_no_client_of_ours_sends_are_refused(indices: list[int]) -> None:
    chain = steps({"kind": "top_k", "share": 3 / 46})
    sent, _ = transforms.apply(chain, delta(), draws(0), {})
    sent["sparse/indices"] = np.array(indices, np.uint32)
    with pytest.raises(ValueError, match="indices"):
        transforms.restore(chain, sent, spec(delta()))


@pytest.mark.parametrize("name", EVERY)
def test_tensors_of_another_shape_are_refused_before_anything_is_made_of_them(name: str) -> None:
    chain = steps(*EVERY[name])
    sent, _ = transforms.apply(chain, delta(), draws(0), {})
    for changed in (
        {**sent, "trainable/9": np.zeros(1, np.float32)},
        {k: a for i, (k, a) in enumerate(sent.items()) if i},
        {k: np.concatenate([a.reshape(-1), a.reshape(-1)]) for k, a in sent.items()},
        {k: a.astype(np.float64) for k, a in sent.items()},
    ):
        with pytest.raises(ValueError, match="steps make"):
            transforms.restore(chain, changed, spec(delta()))


def test_the_same_turn_gives_the_same_bytes() -> None:
    chain = steps(*EVERY["all"])
    one, two, other = (transforms.apply(chain, delta(), draws(s), {})[0] for s in (4, 4, 5))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([{"kind": "quantise"}, {"kind": "clip", "norm": 1.0}], "last step"),
        ([{"kind": "top_k", "share": 0.1}, {"kind": "random_k", "share": 0.1}], "once"),
        ([{"kind": "quantize"}], r"did you mean quantise\?"),
        ([{"kind": "quantise", "bits": 3}], "bits"),
        ([], "at least 1"),
    ],
)
def test_steps_that_make_no_sense_are_refused(tables: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Experiment.model_validate({"update": tables})
