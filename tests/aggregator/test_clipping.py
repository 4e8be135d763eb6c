"""Clipping by tensor, and a norm that follows the lengths of deltas, with its noise accounted."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from pydantic import ValidationError

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.mechanisms.noise import from_seed
from fluffle.aggregator.strategies.base import State, Strategy, model_of
from fluffle.aggregator.strategies.clipping import Adaptive, by_tensor, length_of
from fluffle.aggregator.strategies.registry import make_strategy, protected
from fluffle.aggregator.verify import verify
from fluffle.aggregator.verify.replay import replay
from fluffle.schemas import ClientUpdate, Experiment, Run, Tensors
from tests.aggregator.scripted import Federation

KEY = bytes(range(32))
NORM = "server/private/norm"


def experiment(**privacy: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "task": {"clients": 60},
            "aggregation": {"strategy": "fedbuff", "quorum": 20},
            "privacy": {"clip_norm": 1.0, "noise_multiplier": 0.5, **privacy},
        }
    )


def strategy_of(given: Experiment) -> Strategy:
    return protected(make_strategy(given), given, from_seed(KEY))


def accept(strategy: Strategy, state: State, delta: Tensors) -> State:
    update = ClientUpdate(
        run=Run(run_id="run", run_started=1, epoch=1),
        **{"update_id": "run:1:0", "client": "0", "turn": 1, "base_version": 0, "worker": "w"},
        **{"sends": "delta", "examples": 7, "tensors": delta},
    )
    return strategy.accept(state, update, 0)


def test_each_tensor_is_shortened_by_itself_and_all_are_no_longer_than_the_norm() -> None:
    deltas = {
        "trainable/0": np.full(4, 3.0),
        "trainable/1": np.array([0.1]),
        "trainable/2": -np.ones(9),
    }
    clipped = by_tensor(deltas, 2.0)
    lengths = {name: np.linalg.norm(a) for name, a in clipped.items()}
    share = 2.0 / np.sqrt(3)
    assert lengths == pytest.approx(
        {"trainable/0": share, "trainable/1": 0.1, "trainable/2": share}
    )
    assert length_of(clipped) < 2.0
    # And so in a version, where there is next to no noise
    strategy = strategy_of(experiment(clip_by="tensor", clip_norm=2.0, noise_multiplier=1e-12))
    state = strategy.init({name: np.zeros_like(a) for name, a in deltas.items()})
    made = model_of(strategy.step(accept(strategy, state, deltas)))
    for name, array in clipped.items():
        np.testing.assert_allclose(made[name], array, atol=1e-9)


def test_lengths_and_deltas_together_cost_what_the_noise_multiplier_says() -> None:
    # Given the noise on sums of deltas (sensitivity 1) and on sums of bits (sensitivity 1/2)
    z = 0.8
    for bit_noise in (0.5, 0.8, 3.0):
        of_sums = Adaptive(0.5, 0.2, bit_noise).noise_of_sums(z)
        both = dp_accounting.rdp.RdpAccountant()
        for noise in (of_sums, bit_noise / 0.5):
            both.compose(dp_accounting.GaussianDpEvent(noise))
        alone = dp_accounting.rdp.RdpAccountant()
        alone.compose(dp_accounting.GaussianDpEvent(z))
        assert both.get_epsilon(1e-5) == pytest.approx(alone.get_epsilon(1e-5), rel=1e-9)
        assert of_sums > z


def test_the_norm_is_the_papers_and_goes_to_the_median_of_the_lengths() -> None:
    # Given deltas whose lengths have a median of 7, and a norm that begins at 1
    given = experiment(clip_quantile=0.5, clip_bit_noise=2.0)
    strategy = strategy_of(given)
    rng, size = np.random.default_rng(2), 400
    state = strategy.init({"trainable/0": np.zeros(size)})
    norm, norms = 1.0, []
    for version in range(120):
        lengths = 7.0 * np.exp(rng.normal(size=20))
        total = np.zeros(size)
        for length in lengths:
            direction = rng.normal(size=size)
            delta = direction / np.linalg.norm(direction) * length
            total += delta * min(1.0, norm / length)
            state = accept(strategy, state, {"trainable/0": delta})
        before = model_of(state)["trainable/0"].copy()
        state = strategy.step(state)
        # Then the noise has the norm of its version
        noise = 20 * (model_of(state)["trainable/0"] - before) - total
        of_sums = (0.5**-2 - 4.0**-2) ** -0.5
        assert noise.std() == pytest.approx(of_sums * norm, rel=0.2)
        # And the next norm is Algorithm 1's
        bits = (lengths <= norm).sum() + 2.0 * from_seed(KEY)(version, "bits", 0, 1)[0]
        norm *= np.exp(-0.2 * (bits / 20 - 0.5))
        assert float(state[NORM]) == pytest.approx(norm, rel=1e-9)
        norms.append(norm)
    assert np.median(norms[60:]) == pytest.approx(7.0, rel=0.15)


def test_a_norm_that_follows_survives_crashes_and_is_replayed(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path,
        aggregation={"strategy": "fedbuff", "quorum": 4, "hold_s": 1.0},
        privacy={
            **{"clip_norm": 1.0, "noise_multiplier": 0.5, "noise": "seeded"},
            "clip_quantile": 0.5,
        },
    )
    for _ in range(6):
        federation.answer(3)
        federation.wait(2.0)  # a partial checkpoint
        if federation.service.outcome is None:
            federation.die()
            federation.start()
    federation.finish()
    with closing(LedgerReader(tmp_path)) as ledger:
        assert verify(ledger) == []
        assert replay(ledger).problem is None
        ((file,),) = ledger.query("SELECT file FROM versions ORDER BY version DESC LIMIT 1")
        # All deltas are far longer than 1, so it has grown in each of six versions, but for noise
        assert 1.3 < float(ledger.store.read(file)[NORM]) < 2.5


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"clip_quantile": 0.5, "clip_by": "tensor"}, "is about whole deltas"),
        ({"clip_quantile": 0.5, "clip_bit_noise": 0.25}, "above half of privacy.noise_multiplier"),
        ({"clip_rate": 0.1}, "privacy.clip_rate says nothing without privacy.clip_quantile"),
    ],
)
def test_what_says_nothing_or_would_reveal_too_much_is_refused(
    privacy: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        experiment(**privacy)
