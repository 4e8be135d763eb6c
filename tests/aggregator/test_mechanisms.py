"""Noise mechanisms against independent computations with whole matrices."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.mechanisms.banded import BandedMf, square_root
from fluffle.aggregator.mechanisms.base import Sensitivity
from fluffle.aggregator.mechanisms.noise import from_seed, from_system, normals, uniforms
from fluffle.aggregator.mechanisms.registry import column_of
from fluffle.aggregator.strategies.base import model_of
from fluffle.aggregator.strategies.private import GRID
from fluffle.aggregator.strategies.registry import make_strategy, protected
from fluffle.schemas import ClientUpdate, Experiment, Run, UserError

KEY = bytes(range(32))
Matrix = np.ndarray[Any, np.dtype[np.float64]]


def dense(column: Any, n: int) -> Matrix:
    """C"""
    found = np.zeros((n, n))
    for lag, value in enumerate(column):
        found += value * np.eye(n, k=-lag)
    return found


def error(column: Any, n: int) -> float:
    """|A C^-1|_F^2 times the largest squared length of a column of C."""
    c = dense(column, n)
    a = np.tril(np.ones((n, n)))
    return float(np.sum((a @ np.linalg.inv(c)) ** 2) * np.max(np.sum(c**2, axis=0)))


def experiment(separation: int = 1, **privacy: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "experiment": {"versions": 40},
            "task": {"clients": 60},
            "aggregation": {"strategy": "fedbuff", "quorum": 1},
            "participation": {
                "concurrency": 1,
                "selection": "min-separation",
                "selection_parameters": {"separation": separation},
            },
            "privacy": {"clip_norm": 2.0, "noise_multiplier": 1.5, **privacy},
        }
    )


# ---- the generator


def test_noise_is_standard_normal_and_new_for_every_step_tensor_and_block() -> None:
    source = from_seed(KEY)
    places = [(s, t, b) for s in (0, 1, 11) for t in ("trainable/0", "trainable/1") for b in (0, 1)]
    drawn = np.stack([source(*place, 20_000) for place in places])
    flat = np.sort(drawn.reshape(-1))
    for moment, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert (flat**moment).mean() == pytest.approx(expected, abs=0.06)
    # Its distribution function is the normal one (Kolmogorov and Smirnov, at one in a million)
    from math import erf, sqrt

    points = np.linspace(-3, 3, 61)
    found = np.searchsorted(flat, points) / len(flat)
    exact = np.array([0.5 * (1 + erf(p / sqrt(2))) for p in points])
    assert np.abs(found - exact).max() < 2.7 / np.sqrt(len(flat))
    correlation = np.corrcoef(drawn) - np.eye(len(places))
    assert np.abs(correlation).max() < 5 / np.sqrt(drawn.shape[1])


def test_bits_are_those_of_shake_256() -> None:
    bits = np.frombuffer(hashlib.shake_256(KEY + b"what").digest(32), "<u8") >> np.uint64(11)
    u = (bits.astype(float) + 0.5) / 2**53
    assert np.array_equal(uniforms(KEY, "what", 4), u)
    radius = np.sqrt(-2 * np.log(u[:2]))
    by_hand = [*radius * np.cos(2 * np.pi * u[2:]), *radius * np.sin(2 * np.pi * u[2:])]
    assert np.allclose(normals(KEY, "what", 4), by_hand)
    assert np.array_equal(normals(KEY, "what", 3), normals(KEY, "what", 4)[:3])


def test_noise_of_the_system_is_never_the_same() -> None:
    one, other = (from_system()(0, "trainable/0", 0, 1000) for _ in range(2))
    assert not np.isclose(one, other).any()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


def test_a_noisy_sum_has_no_bit_below_the_grid() -> None:
    given = experiment()
    strategy = protected(make_strategy(given), given, from_seed(KEY))
    state = strategy.init({"trainable/0": np.zeros(500)})
    state = strategy.step(strategy.accept(state, update(np.full(500, 1e-3)), 0))
    unit = 2.0 ** np.floor(np.log2(GRID * 1.5 * 2.0))
    in_units = model_of(state)["trainable/0"] / unit
    assert np.array_equal(in_units, np.rint(in_units))
    assert np.unique(in_units).size == 500


def update(delta: Matrix) -> ClientUpdate:
    return ClientUpdate(
        run=Run(run_id="run", run_started=1, epoch=1),
        **{"update_id": "run:1:0", "client": "0", "turn": 1, "base_version": 0, "worker": "w"},
        **{"sends": "delta", "examples": 7, "tensors": {"trainable/0": delta}},
    )


# ---- banded matrix factorisation


@pytest.mark.parametrize(("versions", "bands"), [(20, 4), (40, 8), (40, 40), (30, 1)])
def test_the_factorisation_is_a_minimum_of_the_error(versions: int, bands: int) -> None:
    column = np.array(BandedMf().column(versions, bands))
    assert len(column) == bands
    assert column.min() >= 0
    best = error(column, versions)
    # Then it beats independent noise, and the square root that it began from
    assert best <= error(square_root(bands), versions) * (1 + 1e-12)
    assert bands == 1 or best < 0.6 * error([1.0], versions)
    # And no small step in any direction makes it better
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = np.concatenate([[0.0], rng.normal(size=bands - 1)])
        moved = np.maximum(column + 0.01 * step, 0.0)
        assert error(moved, versions) >= best * (1 - 1e-6)


def test_more_bands_are_better_and_all_are_near_the_known_optimum() -> None:
    errors = [error(BandedMf().column(64, bands), 64) for bands in (1, 2, 4, 8, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    # The lower bound of any factorisation: the nuclear norm of A, squared, over n (Li et al. 2015)
    nuclear = np.linalg.svd(np.tril(np.ones((64, 64))), compute_uv=False).sum()
    assert nuclear**2 / 64 < errors[-1] < 1.4 * nuclear**2 / 64


def test_a_column_has_length_one_so_that_z_means_the_same() -> None:
    column = column_of(experiment(mechanism="banded-mf", separation=8))
    assert len(column) == 8
    assert np.square(column).sum() == pytest.approx(1.0)
    assert column_of(experiment()) == (1.0,)


def test_sensitivity_is_that_of_the_matrix_for_whoever_took_part() -> None:
    column, n = column_of(experiment(mechanism="banded-mf", separation=5)), 30
    rng = np.random.default_rng(3)
    for client in range(20):
        # Given a client that took part at random, sometimes twice in a version
        times = rng.integers(0, 3, n) * (rng.random(n) < 0.4)
        known, found = Sensitivity(column), 0.0
        for version in np.flatnonzero(times):
            found = known.add(str(client), int(version), int(times[version]))
        # Then what it may change is C m; whole columns, as of a run that goes on for ever
        c = dense(column, n + len(column))[:, :n]
        assert found == pytest.approx(float(np.sum((c @ times) ** 2)))
        # And no other directions of its updates change more
        directions = rng.normal(size=(n, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        assert np.sum((c @ (times[:, None] * directions)) ** 2) <= found + 1e-9
    # And k turns that lie as far apart as there are bands cost as much as under independent noise
    known = Sensitivity(column)
    assert [known.add("x", 5 * k, 1) for k in range(4)] == pytest.approx([1, 2, 3, 4])


def test_the_noise_of_a_run_is_the_inverse_of_the_matrix() -> None:
    # Given forty versions of nothing but noise
    given, n, size = experiment(mechanism="banded-mf", separation=6), 40, 4000
    column = column_of(given)
    strategy = protected(make_strategy(given), given, from_seed(KEY), column)
    state = strategy.init({"trainable/0": np.zeros(size)})
    noises = []
    for _ in range(n):
        before = model_of(state)["trainable/0"].copy()
        state = strategy.step(strategy.accept(state, update(np.zeros(size)), 0))
        noises.append(model_of(state)["trainable/0"] - before)
        assert sum(name.startswith("server/noise_") for name in state) <= len(column) - 1
    # Then it is C^-1 of independent noise of z C, row by row
    z = np.stack([3.0 * from_seed(KEY)(t, "trainable/0", 0, size) for t in range(n)])
    rows = np.linalg.inv(dense(column, n))
    y = np.stack(noises)
    np.testing.assert_allclose(y, rows @ z, atol=1e-4)
    # And measured, its covariance is that of C^-1: what one version adds the next take back
    expected = 9.0 * rows @ rows.T
    assert np.abs(y @ y.T / size - expected).max() < 6 * expected.max() / np.sqrt(size)
    assert expected[20, 21] < -0.3 * expected[20, 20]
    # And the models are nearer to what they would be without noise than under independent noise
    model, independent = y.sum(axis=0).std(), z.sum(axis=0).std()
    assert model < 0.6 * independent


def test_a_mechanism_of_ones_own_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Halves:\n    def __init__(self, second=0.5):\n        self.second = second\n\n"
        "    def column(self, versions, separation):\n        return [1.0, self.second]\n"
    )
    given = experiment(mechanism="mine.py:Halves", parameters={"second": 1.0})
    assert column_of(given, tmp_path) == pytest.approx((0.5**0.5, 0.5**0.5))
    wrong = experiment(mechanism="mine.py:Halves", parameters={"second": -1.0})
    with pytest.raises(UserError, match="none below 0"):
        column_of(wrong, tmp_path)
