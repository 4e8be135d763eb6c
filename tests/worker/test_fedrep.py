"""FedRep: whole turns of a client against plain NumPy, by Algorithm 1 of the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

pytest.importorskip("tensorflow")

import keras
from keras import layers

from fluffle.schemas import Experiment, Plan, UserError
from fluffle.worker.tasks.registry import TASKS, load_task
from fluffle.worker.tasks.task import Examples, Task
from fluffle.worker.training.per_plan import make_trainer
from fluffle.worker.training.trial import check
from tests.worker.softmax import Point, steps_of

pytestmark = pytest.mark.tensorflow

RNG = np.random.default_rng(0)
Y = RNG.integers(3, size=60)
X = (np.eye(3, 4)[Y] + RNG.normal(0, 0.5, (60, 4))).astype(np.float32)
RATE, RHO = 0.3, 0.6


class Heads(Task):
    def model(self) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(5, activation="tanh", name="body"),
                layers.Dense(3, activation="softmax", name="head"),
            ]
        )

    def dataset(self) -> Examples:
        return Examples(X, Y)

    test = dataset


class Normed(Heads):
    def model(self) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(5, name="body"),
                layers.BatchNormalization(name="body_norm"),
                layers.Dense(5, name="head_first"),
                layers.BatchNormalization(name="head_norm"),
                layers.Dense(3, activation="softmax", name="head"),
            ]
        )


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "heads", Heads)
    monkeypatch.setitem(TASKS, "normed", Normed)


def tables(
    task: str = "heads", keep: str | None = "head*", parameters: Any = None, **training: Any
) -> dict[str, Any]:
    return {
        "task": {"name": task, "clients": 3},
        "training": {
            **{"optimizer": "sgd", "learning_rate": RATE, "batch_size": 8, "epochs": 5},
            **{"algorithm": "fedrep", "algorithm_parameters": parameters},
            **training,
        },
        **({} if keep is None else {"weights": {"keep": [keep]}}),
    }


def plan_of(*given: Any, **training: Any) -> Plan:
    return Plan.of(Experiment.model_validate(tables(*given, **training)), "delta")


def gradient(point: Point, chosen: Any) -> Point:
    """Of the mean cross-entropy of softmax(tanh(x a + b) c + d)."""
    a, b, c, d = point
    x, y = X[chosen].astype(float), Y[chosen]
    z = np.tanh(x @ a + b)
    p = np.exp(z @ c + d)
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    inner = p @ c.T * (1 - z**2)
    return [x.T @ inner, inner.sum(axis=0), z.T @ p, p.sum(axis=0)]


def test_a_client_fits_its_head_to_the_body_that_came_and_then_moves_the_body() -> None:
    # Given momentum, whose memory of a part must not move it while it stays
    plan = plan_of("heads", "head*", {"head_epochs": 3}, momentum=RHO)
    trainer, indices = make_trainer(plan), load_task(plan).client_indices("1")
    base, state = trainer.initial(), dict[str, Any]()
    assert list(base) == ["trainable/body/kernel", "trainable/body/bias"]
    head = None
    for turn in (1, 2):
        found = trainer.train(base, "1", turn, None, state)
        # When the paper's loop goes on from the body that came and the head that was kept
        body = [base[f"trainable/body/{n}"].astype(float) for n in ("kernel", "bias")]
        if head is None:
            whole = trainer._travel.inward(base, {})
            head = [whole[f"trainable/{i}"].astype(float) for i in (2, 3)]
        point = [*body, *head]
        velocity = [np.zeros_like(a) for a in point]
        steps = steps_of(plan, "1", turn, 5, indices)
        for number, chosen in enumerate(steps):
            trained = (2, 3) if number < 3 * len(steps) // 5 else (0, 1)
            g = gradient(point, chosen)
            for i in trained:
                velocity[i] = RHO * velocity[i] - RATE * g[i]
                point[i] = point[i] + velocity[i]
        # Then what is sent is its body, and what is kept is its head
        assert list(found.tensors) == list(base)
        for name, expected in zip(("kernel", "bias"), point[:2], strict=True):
            np.testing.assert_allclose(found.tensors[f"trainable/body/{name}"], expected, atol=1e-5)
        for name, expected in zip(("kernel", "bias"), point[2:], strict=True):
            kept = found.state[f"personal/trainable/head/{name}"]
            np.testing.assert_allclose(kept, expected, atol=1e-5)
        assert np.abs(point[2] - head[0]).max() > 0.1
        # And the next body is another than what the client made of it
        head, state = point[2:], found.state
        base = {name: array * np.float32(0.9) for name, array in found.tensors.items()}


def test_what_stays_is_bit_equal_and_so_are_its_statistics() -> None:
    # Given an optimizer that decays weights, and two epochs of the head: all but the last, or so
    # many
    def after(epochs: int, parameters: Any) -> Any:
        more = {"optimizer": "adamw", "epochs": epochs}
        trainer = make_trainer(plan_of("normed", "head*", parameters, **more))
        return trainer.initial(), trainer.train(trainer.initial(), "1", 1, None, {})

    (base, three), (_, four) = after(3, None), after(4, {"head_epochs": 2})
    # Then another epoch of the body leaves the head and its statistics as they were
    for name, array in three.state.items():
        assert array.tobytes() == four.state[name].tobytes(), name
    assert "personal/non_trainable/head_norm/moving_mean" in three.state
    # And moves the body, and its statistics
    moved = [name for name in base if (three.tensors[name] != four.tensors[name]).any()]
    assert moved == list(base)


@pytest.mark.parametrize(
    ("given", "more", "why"),
    [
        ({"keep": None}, {}, r"needs \[weights\] keep"),
        ({"epochs": 1}, {}, "training.epochs = 1 are the head's and then the body's"),
        ({"parameters": {"head_epochs": 5}}, {}, "more than .*head_epochs"),
        ({"parameters": {"head": 5}}, {}, "the parameters of fedrep: head_epochs"),
        ({}, {"devices": {"stragglers": 0.1}}, "devices.stragglers do fewer epochs"),
        ({}, {"devices": {"preset": "phones"}}, "devices.stragglers do fewer epochs"),
        ({"optimizer_parameters": {"use_ema": True}}, {}, "use_ema goes on from the head's"),
        ({"proximal_mu": 0.1}, {}, "proximal_mu is fedprox's, and not fedrep's"),
        ({}, {"aggregation": {"strategy": "fednova"}}, "brings its clients' algorithm"),
    ],
)
def test_what_cannot_be_as_the_paper_has_it_is_refused(given: Any, more: Any, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Experiment.model_validate({**tables(**given), **more})


def test_a_head_without_anything_to_train_is_refused_before_a_run() -> None:
    document = tables("normed", "*moving*")
    with pytest.raises(UserError, match="no trainable weight is there"):
        check(Experiment.model_validate(document))
