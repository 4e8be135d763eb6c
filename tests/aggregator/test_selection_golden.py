"""Power-of-choice and Oort against their papers' equations, worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.selections.base import Counted, Moment
from fluffle.aggregator.selections.oort import Oort
from fluffle.aggregator.selections.power_of_choice import PowerOfChoice
from fluffle.schemas import Experiment, UserError


def moment(clients: int, turn: int = 1, version: int = 0, together: bool = True) -> Moment:
    return Moment(42, turn, version, clients, together, lambda client: True)


def counted(
    client: int, loss: float, version: int = 1, examples: int = 10, seconds: float = 1.0
) -> Counted:
    return Counted(str(client), version, version - 1, examples, {"loss": loss}, seconds)


# ---- power-of-choice


def test_power_of_choice_takes_the_largest_losses_of_its_candidates() -> None:
    # Given all six clients as candidates
    selection = PowerOfChoice(6)
    losses = [0.3, 2.0, 0.1, 1.5, 0.9, 1.7]
    selection.observe(1, [counted(c, loss) for c, loss in enumerate(losses)])
    # Then the m with the largest losses are chosen, whatever the draw
    for turn in range(5):
        assert selection.choose(moment(6, turn), 3) == ["1", "3", "5"]
    # And a client's last loss is what counts
    selection.observe(2, [counted(1, 0.01, version=2)])
    assert selection.choose(moment(6), 3) == ["3", "4", "5"]


def test_power_of_choice_takes_who_has_not_counted_yet_first() -> None:
    selection = PowerOfChoice(4)
    selection.observe(1, [counted(0, 1e9), counted(2, 1.0)])
    assert selection.choose(moment(4), 2) == ["1", "3"]
    assert selection.choose(moment(4), 3) == ["0", "1", "3"]


def test_power_of_choice_draws_its_candidates_by_their_share_of_the_data() -> None:
    # Given clients with 10, 20, 30 and 40 examples, and one candidate: the draw decides
    selection = PowerOfChoice(1)
    selection.observe(1, [counted(c, 1.0, examples=10 * (c + 1)) for c in range(4)])
    chosen = Counter(selection.choose(moment(4, turn), 1)[0] for turn in range(1500))
    assert [chosen[str(c)] / 1500 for c in range(4)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4], abs=0.05
    )


def test_power_of_choice_with_two_candidates_is_the_papers_probability() -> None:
    # Given four clients of equal size, losses 1 < 2 < 3 < 4, d = 2 and m = 1
    selection = PowerOfChoice(2)
    selection.observe(1, [counted(c, c + 1.0) for c in range(4)])
    chosen = Counter(selection.choose(moment(4, t, together=False), 1)[0] for t in range(1500))
    # Then client k is chosen where the other candidate is below it: k of the 6 pairs
    assert chosen["0"] == 0
    assert [chosen[str(c)] / 1500 for c in range(1, 4)] == pytest.approx(
        [1 / 6, 2 / 6, 3 / 6], abs=0.05
    )


# ---- Oort


def oort(**parameters: float) -> Oort:
    return Oort(**{"pacer_step_s": 10.0, **parameters})


def test_oorts_utility_is_the_papers_with_uncertainty_clipping_and_penalty() -> None:
    # Given clients that counted in versions 1, 4 and 9, one of them too slow
    selection = oort(penalty=2.0)
    selection.observe(1, [counted(0, 0.5, 1, examples=20, seconds=10.0)])
    selection.observe(4, [counted(1, 1.5, 4, examples=8, seconds=40.0)])
    selection.observe(9, [counted(2, 2.0, 9, examples=50, seconds=5.0)])
    # When the utilities for version 11 are asked for: U = 10, 12, 100, the 95th percentile 91.2
    found = selection.utilities(["0", "1", "2"], 11)
    # Then they are those of Algorithm 1; T is 10 seconds
    assert found["0"] == pytest.approx(10 + math.sqrt(0.1 * math.log(11) / 1))
    assert found["1"] == pytest.approx((12 + math.sqrt(0.1 * math.log(11) / 4)) * (10 / 40) ** 2)
    assert found["2"] == pytest.approx(91.2 + math.sqrt(0.1 * math.log(11) / 9))


def test_oorts_utility_is_exact_where_a_client_says_the_root_mean_square_of_its_losses() -> None:
    losses = np.array([0.1, 2.0, 0.4, 3.0])
    rms = float(np.sqrt(np.mean(losses**2)))
    selection = oort()
    metrics = {"loss": float(losses.mean()), "loss_rms": rms}
    selection.observe(1, [Counted("0", 1, 0, 4, metrics, 1.0)])
    # |B| sqrt(1 / |B| sum Loss^2), equation 1; log 1 = 0
    assert selection.utilities(["0"], 1)["0"] == pytest.approx(4 * np.sqrt((losses**2).sum() / 4))


def test_oorts_pacer_relaxes_when_the_last_window_brought_less_than_the_one_before() -> None:
    selection = oort(window=2)
    times = []
    for version, loss in enumerate([3.0, 3.0, 2.0, 2.0, 4.0, 5.0, 0.5], 1):
        selection.observe(version, [counted(0, loss, version)])
        times.append(selection.preferred_s)
    # Sums of two: 6 against 4, then 5 against 6, 4 against 9, 6 against 5.5
    assert times == [10, 10, 10, 20, 20, 20, 30]


def test_oort_exploits_among_those_near_the_cut_off_in_proportion_to_their_utility() -> None:
    # Given no exploration, K = 1, and utilities 100, 96 and 50: the cut-off is at 95
    selection = oort(exploration=0.0)
    selection.observe(1, [counted(c, loss) for c, loss in enumerate([10.0, 9.6, 5.0])])
    # Then the third has no chance; of the others each has its share (clipped: 99.6 and 96)
    chosen = Counter(selection.choose(moment(3, turn), 1)[0] for turn in range(1000))
    assert chosen["2"] == 0
    assert chosen["0"] / 1000 == pytest.approx(99.6 / (99.6 + 96), abs=0.05)


def test_oort_explores_its_share_among_those_who_have_not_counted_yet() -> None:
    # Given eps = 0.9 and 0.98 of it after a version, ten clients of whom four have counted
    selection = oort()
    selection.observe(1, [counted(c, 1.0) for c in range(4)])
    fresh = [
        sum(int(c) >= 4 for c in selection.choose(moment(10, turn, 1), 4)) for turn in range(500)
    ]
    assert np.mean(fresh) / 4 == pytest.approx(0.9 * 0.98, abs=0.03)
    # And one by one alike
    one = [
        int(selection.choose(moment(10, turn, 1, together=False), 1)[0]) >= 4 for turn in range(800)
    ]
    assert np.mean(one) == pytest.approx(0.9 * 0.98, abs=0.05)


def test_oorts_exploration_ends_at_its_least() -> None:
    selection = oort()
    for version in range(1, 200):
        selection.observe(version, [counted(0, 1.0, version)])
    fresh = [int(selection.choose(moment(5, t, 199, False), 1)[0]) >= 1 for t in range(800)]
    assert np.mean(fresh) == pytest.approx(0.2, abs=0.05)


def test_oort_takes_more_of_those_who_counted_where_nobody_is_new_and_the_other_way_round() -> None:
    selection = oort()
    assert len(selection.choose(moment(5), 3)) == 3
    selection.observe(1, [counted(c, 0.0) for c in range(5)])
    assert len(set(selection.choose(moment(5, version=1), 4))) == 4


# ---- both


@pytest.mark.parametrize("selection", [PowerOfChoice(3), oort()])
def test_a_client_that_says_no_loss_ends_the_run_with_one_line(selection: Any) -> None:
    with pytest.raises(UserError, match="client 7 says none"):
        selection.observe(1, [Counted("7", 1, 0, 10, {}, 1.0)])


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("power-of-choice", {}, "candidates"),
        ("power-of-choice", {"candidates": 4}, "5 of candidates = 4 of 10"),
        ("power-of-choice", {"candidates": 11}, "candidates = 11 of 10"),
        ("oort", {"pacer_step_s": 1.0, "deterministic": True}, "how long turns took"),
        ("oort", {}, r"selection_parameters.pacer_step_s: Field required \(of oort\)"),
        ("oort", {"pacer_step_s": 1.0, "alpha": 2.0}, "alpha: Extra inputs"),
    ],
)
def test_parameters_that_cannot_be_are_refused(
    name: str, parameters: dict[str, Any], said: str
) -> None:
    deterministic = parameters.pop("deterministic", False)
    aggregation = {"deterministic": True, "on_deadline": "extend"} if deterministic else {}
    with pytest.raises(ValueError, match=said):
        Experiment.model_validate(
            {
                "task": {"clients": 10},
                "aggregation": aggregation,
                "participation": {
                    **{"mode": "cohort", "sampling_rate": 0.5},
                    **{"selection": name, "selection_parameters": parameters},
                },
            }
        )
