"""The JAX engine trains what TensorFlow's does; a process has one engine, so each has its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax", reason="the extra jax is not installed")
pytest.importorskip("tensorflow")

from fluffle.schemas import Experiment, Plan, UserError
from fluffle.worker.training.per_plan import make_trainer
from tests.worker.engines import CASES

pytestmark = pytest.mark.tensorflow

ROOT = Path(__file__).parents[2]
Outcomes = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcomes]:
    """What each engine gives, by its name."""
    folder, found = tmp_path_factory.mktemp("engines"), {}
    for engine in ("jax", "tensorflow"):
        file = folder / f"{engine}.npz"
        command = [sys.executable, "-m", "tests.worker.engines", engine, str(file)]
        subprocess.run(command, check=True, cwd=ROOT)
        found[engine] = {name.replace("|", "/"): a for name, a in np.load(file).items()}
    return found


@pytest.mark.parametrize("case", CASES)
def test_both_engines_train_the_same(outcomes: dict[str, Outcomes], case: str) -> None:
    ours, theirs = outcomes["jax"], outcomes["tensorflow"]
    names = [name for name in theirs if name.startswith(f"{case}/")]
    assert sorted(names) == sorted(name for name in ours if name.startswith(f"{case}/"))
    for name in names:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_both_engines_measure_what_decisions_are_made_on(outcomes: dict[str, Outcomes]) -> None:
    assert all("nesterov/evaluated/validation_loss" in found for found in outcomes.values())


def test_what_would_be_trained_otherwise_than_it_is_meant_is_refused(
    outcomes: dict[str, Outcomes],
) -> None:
    found = outcomes["jax"]
    assert "the model has 3 outputs, so labels are 0 to 2" in str(found["refused/Far"])
    assert "target_accuracy would never apply" in str(found["refused/Unmeasured"])


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"algorithm": "moon"}, "does without training.algorithm = 'moon'"),
        ({"optimizer_state": "keep"}, "does without training.optimizer_state = 'keep'"),
    ],
)
def test_what_it_does_without_is_said(training: dict[str, str], said: str) -> None:
    from fluffle.worker.training.lanes.support import check_plan

    tables = {"training": {"engine": "jax", **training}}
    with pytest.raises(UserError, match=said):
        check_plan(Plan.of(Experiment.model_validate(tables), "delta"))


def test_a_process_with_another_engine_says_so() -> None:
    plan = Plan.of(Experiment.model_validate({"training": {"engine": "jax"}}), "delta")
    with pytest.raises(UserError, match="start it with FLUFFLE_ENGINE=jax"):
        make_trainer(plan)


def test_lanes_are_for_jax() -> None:
    with pytest.raises(ValueError, match="lanes"):
        Experiment.model_validate({"training": {"lanes": 4}})


def test_a_run_has_the_same_bytes_on_any_number_of_slots(outcomes: dict[str, Outcomes]) -> None:
    one, three = (str(outcomes["jax"][f"slots/{slots}"]) for slots in (1, 3))
    assert len(one) == 64
    assert one == three


def test_threads_that_share_steps_give_the_same_bytes_whoever_shares_them(
    outcomes: dict[str, Outcomes],
) -> None:
    two, six = (str(outcomes["jax"][f"threads/{slots}"]) for slots in (2, 6))
    assert len(two) == 64
    assert two == six


def test_of_those_that_share_a_step_one_fails_alone(outcomes: dict[str, Outcomes]) -> None:
    failed, *others = sorted(
        (str(outcomes["jax"][f"broken/{client}"]) for client in range(4)), key=len, reverse=True
    )
    assert "example 5" in failed
    assert others == ["3", "3", "3"]
