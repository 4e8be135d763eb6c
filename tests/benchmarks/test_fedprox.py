"""The FedProx benchmark in small: what its runs do, and what its table says of them."""

from __future__ import annotations

import importlib.util
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.schemas import Experiment, Plan
from fluffle.worker.devices import Devices

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fedprox" / "measure.py"


@pytest.fixture(scope="module")
def fedprox() -> Any:
    spec = importlib.util.spec_from_file_location("fedprox_measure", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.tensorflow
def test_fedavg_steps_with_who_is_done_and_fedprox_with_all_ten(fedprox: Any) -> None:
    # Given five rounds of two local epochs, nine stragglers in ten
    dropping, partial, proximal = (
        fedprox.measure(fedprox.Job("(1, 1)", 0.9, mu, 21, rounds=5, epochs=2))
        for mu in (None, 0.0, 1.0)
    )
    # Then FedAvg made every version from the few that were not dropped
    assert 5 <= dropping["updates"] <= 25
    # And FedProx from the partial work of all
    assert partial["updates"] == proximal["updates"] == 50
    # And there are curves from the seeded model on, which is the same for all
    rows = (dropping, partial, proximal)
    assert [len(row["accuracy"]) for row in rows] == [2, 2, 2]
    assert len({row["loss"][0] for row in rows}) == 1
    assert all(row["loss"][-1] < row["loss"][0] for row in rows)
    # And the proximal term changed what was learned
    assert proximal["loss"][-1] != partial["loss"][-1]


def test_a_straggler_is_lost_to_fedavg_and_does_some_epochs_for_fedprox(fedprox: Any) -> None:
    # Given the devices of both methods
    dropping, partial = (
        [devices.outcome(str(client), turn) for client, turn in product(range(30), range(60))]
        for devices in (devices_of(fedprox, fedprox.Job("IID", 0.5, mu, 1)) for mu in (None, 1.0))
    )
    # Then half of the turns bring FedAvg nothing, and the others all of their epochs
    lost = [outcome.lost_at for outcome in dropping]
    assert np.mean([at == "before_training" for at in lost]) == pytest.approx(0.5, abs=0.05)
    assert {outcome.epochs for outcome in dropping} == {20}
    # And every turn brings FedProx an update, half of them of 1 to 20 epochs
    assert {outcome.lost_at for outcome in partial} == {None}
    epochs = np.array([outcome.epochs for outcome in partial])
    assert np.mean(epochs < 20) == pytest.approx(0.5 * 19 / 20, abs=0.05)
    assert epochs.min() == 1


def devices_of(fedprox: Any, job: Any) -> Devices:
    experiment = Experiment.model_validate(fedprox.document(job))
    return Devices(Plan.of(experiment, "weights"))


def test_the_loss_of_a_model_that_knows_nothing_is_that_of_a_guess(fedprox: Any) -> None:
    x = np.random.default_rng(0).normal(size=(7, 60)).astype(np.float32)
    weights = {
        "model/trainable/0": np.zeros((60, 10), np.float32),
        "model/trainable/1": np.zeros(10, np.float32),
    }
    y = np.arange(7)
    assert fedprox.training_loss(weights, x, y) == pytest.approx(math.log(10))
    # And one that is sure of a class is wrong by its margin on the others
    weights["model/trainable/1"][3] = 1000.0
    assert fedprox.training_loss(weights, x, y) == pytest.approx(1000 * 6 / 7)


def test_a_run_is_compared_where_it_has_converged_or_diverged_or_ends(fedprox: Any) -> None:
    falling = [3 - 0.01 * t for t in range(20)]
    assert fedprox.stop_of(falling) == 19
    assert fedprox.stop_of([*falling, falling[-1] + 5e-5, 0.0]) == 20
    assert fedprox.stop_of([*falling, 3.95, 0.0]) == 20


def test_the_tables_give_means_over_seeds_and_gains_over_fedavg(
    fedprox: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Given runs of which FedAvg's reach 50 and 52 %, mu = 0.1 20 points more, every other 10;
    # one run is missing
    rows = []
    for job in fedprox.all_jobs(seeds=2):
        first = 0.5 if job.seed == fedprox.SEEDS[0] else 0.52
        reached = first + {None: 0.0, 0.1: 0.2}.get(job.mu, 0.1)
        row = {"final": reached, "stopped": reached - 0.2, "accuracy": [0.1, reached]}
        if (job.data, job.stragglers, job.mu, first) != ("IID", 0.9, None, 0.52):
            rows.append({**job._asdict(), **row})
    # When the tables are printed and the figure drawn
    fedprox.print_tables(rows)
    fedprox.draw(rows, tmp_path / "figure.svg")
    # Then a line has all methods, with their spread; without stragglers FedAvg is mu = 0
    printed = capsys.readouterr().out.splitlines()
    zero, ten, twenty = "51.0 ± 1.4", "61.0 ± 1.4", "71.0 ± 1.4"
    assert f"| (1, 1) | 50% | 2 | {zero} | {ten} | {ten} |" in printed
    assert f"| (1, 1) | 0% | 2 | {ten} | {ten} | {ten} |" in printed
    assert f"| (1, 1) | 2 | {ten} | {ten} | {ten} | {twenty} | {ten} |" in printed
    # And a seed counts where all methods have run
    assert "| IID | 90% | 1 | 50.0 | 60.0 | 60.0 |" in printed
    # And the gains are differences of the same seeds; the best mu is that of a data set
    assert "| (1, 1) | the last 10 rounds | 90% | +10.0 | +10.0 | +20.0 |" in printed
    assert "| all but IID, mean | the paper's rule | 50% | +10.0 | +10.0 | – |" in printed
    assert "synthetic(1, 1)" in (tmp_path / "figure.svg").read_text()
