"""Central differential privacy: what is clipped, what is added, and what it comes to."""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from fluffle.aggregator.coordinator.effects import Fold, MakeVersion
from fluffle.aggregator.ledger.privacy import ADJACENCY, epsilon, epsilons, noise_of
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.mechanisms.noise import from_seed
from fluffle.aggregator.strategies.base import model_of
from fluffle.aggregator.strategies.registry import make_strategy, protected
from fluffle.display import print_summary
from fluffle.schemas import ClientFailed, ClientUpdate, Experiment, Run, Tensors, UserError

KEY = b"ab" * 16
PRIVACY = {"clip_norm": 2.0, "noise_multiplier": 0.5}


def experiment(strategy: str = "fedbuff", **privacy: float) -> Experiment:
    aggregation = {"strategy": strategy, "staleness": "constant"}
    return Experiment.model_validate(
        {"aggregation": aggregation, "privacy": {**PRIVACY, **privacy}}
    )


def update(delta: Tensors, examples: int = 7) -> ClientUpdate:
    return ClientUpdate(
        run=Run(run_id="run", run_started=1, epoch=1),
        **{"update_id": "run:1:0", "client": "0", "turn": 1, "base_version": 0, "worker": "w"},
        **{"sends": "delta", "examples": examples, "tensors": delta},
    )


def stepped(given: Experiment, deltas: list[Tensors], key: bytes = KEY) -> list[Tensors]:
    """The models of one version after another, a delta each."""
    strategy = protected(make_strategy(given), given, from_seed(key))
    state = strategy.init({name: np.zeros_like(a) for name, a in deltas[0].items()})
    models = []
    for delta in deltas:
        state = strategy.step(strategy.accept(state, update(delta), 0))
        models.append(model_of(state))
    return models


def test_a_long_delta_is_shortened_over_all_its_tensors_and_a_short_one_is_not() -> None:
    # Given next to no noise, and deltas of length 5 and 0.5
    given = experiment(noise_multiplier=1e-12)
    long = {"trainable/0": np.array([3.0], np.float32), "trainable/1": np.array([[4.0]], "f4")}
    short = {name: array / 10 for name, array in long.items()}
    first, second = stepped(given, [long, short])
    # Then the first moves the model by 2 along itself, the second by all of it
    assert first["trainable/0"] == pytest.approx(1.2)
    assert first["trainable/1"] == pytest.approx(1.6)
    assert second["trainable/0"] - first["trainable/0"] == pytest.approx(0.3, rel=1e-6)


def test_the_noise_has_z_times_c_as_its_deviation_and_is_new_in_every_version() -> None:
    given, nothing = experiment(), {"trainable/0": np.zeros(50_000, np.float32)}
    first, second = (m["trainable/0"] for m in stepped(given, [nothing, nothing]))
    for noise in (first, second - first):
        assert noise.std() == pytest.approx(2.0 * 0.5, rel=0.02)
        assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
    assert abs(np.corrcoef(first, second - first)[0, 1]) < 0.03


def test_who_has_the_key_can_recompute_a_version_and_nobody_else() -> None:
    given, delta = experiment(), {"trainable/0": np.ones(10, np.float32)}
    one, same, other = (
        stepped(given, [delta], key)[0]["trainable/0"] for key in (KEY, KEY, b"cd" * 16)
    )
    assert np.array_equal(one, same)
    assert not np.isclose(one, other).any()


@pytest.mark.parametrize("strategy", ["fedbuff", "fedavg", "fedadam", "fedyogi", "ringmaster"])
def test_every_strategy_that_sums_can_be_private(strategy: str) -> None:
    needed: dict[str, Any] = {"ringmaster": {"delay_threshold": 3}, "fedbuff": {}}
    table = {"strategy": strategy, **needed.get(strategy, {"weighting": "uniform"})}
    given = Experiment.model_validate({"aggregation": table, "privacy": PRIVACY})
    model = stepped(given, [{"trainable/0": np.ones(4, np.float32)}])[0]
    assert model["trainable/0"].shape == (4,)
    assert (model["trainable/0"] != 0).all()


@pytest.mark.parametrize(
    ("aggregation", "message"),
    [
        ({"strategy": "fedasync"}, "privacy goes with"),
        ({"strategy": "norm-bounding", "norm_bound": 1.0}, "privacy goes with"),
        ({"strategy": "median"}, "privacy goes with"),
        ({"strategy": "fedavg"}, "weighting = 'uniform'"),
    ],
)
def test_what_would_not_be_private_is_refused(aggregation: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Experiment.model_validate({"aggregation": aggregation, "privacy": PRIVACY})


def test_a_model_with_values_that_are_averaged_bare_is_refused() -> None:
    delta = {"trainable/0": np.ones(2, np.float32), "non_trainable/0": np.ones(2, np.float32)}
    with pytest.raises(UserError, match="batch normalisation"):
        stepped(experiment(), [delta])


# ---- accounting


def exact_delta(epsilon: float, deviation: float) -> float:
    """Balle and Wang 2018, arXiv 1805.06530, equation 6: of one Gaussian mechanism."""

    def phi(x: float) -> float:
        return 0.5 * (1 + math.erf(x / math.sqrt(2)))

    a, b = 1 / (2 * deviation), epsilon * deviation
    return phi(a - b) - math.exp(epsilon) * phi(-a - b)


@pytest.mark.parametrize("deviation", [0.7, 1.0, 3.0, 20.0])
def test_epsilon_is_an_upper_bound_of_the_exact_one_and_not_a_loose_one(deviation: float) -> None:
    found = epsilon(deviation, 1e-5)
    assert exact_delta(found, deviation) <= 1e-5
    assert exact_delta(found * 0.8, deviation) > 1e-5


def test_epsilon_follows_the_client_who_took_part_most(tmp_path: Path) -> None:
    # Given three versions: client 0 in all of them, and twice in the last
    ledger = Ledger(tmp_path, durable=False)
    ledger.open_run(experiment(), "run", 1)
    ledger.lead()
    who = {0: [], 1: ["0", "1"], 2: ["0", "2"], 3: ["0", "0", "1"]}
    turn = 0
    for version, clients in who.items():
        folds = []
        for client in clients:
            turn += 1
            folds.append(Fold(f"run:{turn}:{client}", client, turn, max(0, version - 1), 0, 1, "w"))
        state = {"model/trainable/0": np.zeros(1, np.float32)}
        ledger.make_version(MakeVersion(version, state, "quorum", folds, turn + 1), {}, 1.0, 3)
    # Then it is that of noise z / sqrt(m), m = 1, 2, 6: two in one version weigh four
    expected = [(v, epsilon(0.5 / math.sqrt(m), 1e-5)) for v, m in ((1, 1), (2, 2), (3, 6))]
    assert epsilons(ledger) == expected
    assert summarise(ledger)["epsilon"] == pytest.approx(expected[-1][1], rel=1e-4)
    ledger.close()


def test_only_where_it_is_asked_for_or_simulated_is_there_anything_to_make_the_noise_from(
    tmp_path: Path,
) -> None:
    seeds = []
    asked = [("real", "system"), *[("real", "seeded")] * 2, *[("virtual", "system")] * 2]
    for i, (clock, noise) in enumerate(asked):
        given = Experiment.model_validate({"privacy": {**PRIVACY, "noise": noise}})
        ledger = Ledger(tmp_path / str(i), durable=False)
        ledger.open_run(given, "run", 1, clock)
        seeds.append(ledger.meta.get("noise_seed"))
        assert ledger.open_run(given, "run", 1, clock)
        assert ledger.meta.get("noise_seed") == seeds[-1], "a run that resumes keeps its secret"
        ledger.close()
    # Then a run that nobody asked to be seeded keeps none, and virtual ones follow from the seed
    assert seeds[0] is None
    assert len({*seeds[1:]}) == 3
    assert seeds[3] == seeds[4]


def test_a_private_run_of_an_earlier_version_is_not_continued_with_other_noise() -> None:
    with pytest.raises(UserError, match="begun by an earlier version"):
        noise_of({"noise_key": "ab" * 16})


# ---- what it stands on


def test_the_adjacency_is_zero_out_and_not_absence() -> None:
    # Given 100 versions of ten updates each, along the same direction, the worst case
    given = experiment(noise_multiplier=1e-9)
    ones = [{"trainable/0": np.array([2.0], np.float32)}] * 1000
    zeroed = [ones[0]] * 5 + [{"trainable/0": np.zeros(1, np.float32)}] + [ones[0]] * 994

    def sums_of(deltas: list[Tensors]) -> np.ndarray[Any, Any]:
        strategy = protected(make_strategy(given), given, from_seed(KEY))
        state, found = strategy.init({"trainable/0": np.zeros(1, np.float32)}), []
        for start in range(0, len(deltas) - 9, 10):
            before = model_of(state)["trainable/0"]
            for delta in deltas[start : start + 10]:
                state = strategy.accept(state, update(delta), 0)
            state = strategy.step(state)
            found.append(10 * (model_of(state)["trainable/0"] - before))
        return np.concatenate(found) / 2.0  # in units of C

    # Then one update that is zeroed moves the sums of all versions by C
    assert np.linalg.norm(sums_of(zeroed) - sums_of(ones)) == pytest.approx(1.0, rel=1e-3)
    # And one that is absent shifts all that come later: of alternating signs, by far more
    signs = [{"trainable/0": np.array([2.0 * (-1) ** (i // 10)], np.float32)} for i in range(1000)]
    absent = np.linalg.norm(sums_of(signs[:5] + signs[6:]) - sums_of(signs)[:99])
    assert absent > 14


def test_what_may_have_broken_it_is_said_beside_epsilon(tmp_path: Path) -> None:
    # Given a run of cohorts from weights that it was given, with nothing else about it
    table = {"mode": "cohort", "sampling_rate": 0.5}
    given = Experiment.model_validate({"privacy": PRIVACY, "participation": table})
    ledger = Ledger(tmp_path, durable=False)
    ledger.open_run(given, "run", 1)
    ledger.lead()
    state = {"model/trainable/0": np.zeros(1, np.float32)}
    ledger.make_version(MakeVersion(0, state, "initial", [], 1), {}, 1.0, 3)
    (initial,) = summarise(ledger)["privacy"]["caveats"]
    assert initial.startswith("version 0 came from --initial")
    # When a training fails and a deadline closes a version
    failed = ClientFailed(
        run=Run(run_id="run", run_started=1, epoch=1),
        **{"update_id": "run:1:0", "client": "0", "turn": 1, "base_version": 0, "worker": "w"},
        reason="the training diverged",
    )
    ledger.record_failure(failed)
    fold = Fold("run:2:1", "1", 2, 0, 0, 1, "w")
    ledger.make_version(MakeVersion(1, state, "deadline", [fold], 3), {}, 2.0, 3)
    # Then both are said, and the adjacency
    found = summarise(ledger)["privacy"]
    assert found["adjacency"] == ADJACENCY
    assert [c.split(" and")[0] for c in found["caveats"][1:]] == [
        "1 trainings failed",
        "1 versions were closed by the deadline",
    ]
    # And a person sees them
    console = Console(file=StringIO(), width=300)
    print_summary(console, {**summarise(ledger), "peak_rss_mb": 1.0}, tmp_path)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert ADJACENCY in shown
    assert shown.count("but ") == 3
    ledger.close()
