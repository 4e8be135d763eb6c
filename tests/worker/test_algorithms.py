"""FedDyn, Ditto and MOON: whole turns of clients against plain NumPy, by the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fluffle.schemas import Experiment, Plan, Tensors, tensors_sha256
from fluffle.worker.training.seeds import Purpose
from tests.worker.softmax import Point, gradient, steps_of

pytestmark = pytest.mark.tensorflow

RATE, EPOCHS, ALPHA, PULL = 0.2, 2, 0.3, 0.7


def plan_of(asks: Any = None, **training: Any) -> Plan:
    tables = {
        "task": {"name": "digits-lr", "clients": 6},
        "partition": {"kind": "similarity", "similarity": 0.0, "examples_per_client": 20},
        "training": {
            **{"optimizer": "sgd", "learning_rate": RATE, "epochs": EPOCHS, "batch_size": 8},
            **training,
        },
    }
    return Plan.of(Experiment.model_validate(tables), "delta", asks)


def by_hand(plan: Plan, turn: int, start: Point, correct: Any, purpose: Purpose = "order") -> Point:
    """SGD on client 2's steps of this turn, ``correct(y, gradient)`` made of each gradient."""
    from fluffle.worker.tasks.registry import load_task

    task = load_task(plan)
    y = [a.copy() for a in start]
    for step in steps_of(plan, "2", turn, EPOCHS, task.client_indices("2"), purpose=purpose):
        g = correct(y, gradient(y, task.dataset(), step))
        y = [a - RATE * b for a, b in zip(y, g, strict=True)]
    return y


def point(tensors: Tensors, prefix: str = "trainable") -> Point:
    return [tensors[f"{prefix}/{i}"].astype(float) for i in range(2)]


def compare(found: Point, expected: Point) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)


def test_feddyns_turns_are_those_of_algorithm_1() -> None:
    from fluffle.worker.training.per_plan import make_trainer

    plan = plan_of("feddyn")
    trainer = make_trainer(plan)
    model, state = trainer.initial(), dict[str, Any]()
    kept = [np.zeros_like(a) for a in point(model)]
    for turn in (1, 2, 3):
        # Given a client with what it kept, when it trains
        base = {**model, "feddyn/alpha": np.array(ALPHA)}
        found = trainer.train(base, "2", turn, None, state)
        # Then its model and its gradient are the paper's
        start = point(model)

        def correct(y: Point, g: Point, start: Point = start, kept: Point = kept) -> Point:
            rows = zip(y, g, start, kept, strict=True)
            return [d - k + ALPHA * (a - s) for a, d, s, k in rows]

        end = by_hand(plan, turn, start, correct)
        kept = [k - ALPHA * (b - a) for k, a, b in zip(kept, start, end, strict=True)]
        compare(point(found.tensors), end)
        compare(point(found.state, "feddyn"), kept)
        assert not found.extra
        model, state = found.tensors, found.state
    assert max(np.abs(k).max() for k in kept) > 0.01


def test_dittos_update_is_fedavgs_and_its_own_model_is_pulled_to_the_global_one() -> None:
    from fluffle.worker.training.per_plan import make_trainer

    plan = plan_of(algorithm="ditto", algorithm_parameters={"pull": PULL})
    trainer, plain = make_trainer(plan), make_trainer(plan_of())
    model, state = trainer.initial(), dict[str, Any]()
    own = point(model)
    for turn in (1, 2, 3):
        found = trainer.train(model, "2", turn, None, state)
        expected = plain.train(model, "2", turn).tensors
        assert tensors_sha256(found.tensors) == tensors_sha256(expected)
        start = point(model)

        def correct(v: Point, g: Point, start: Point = start) -> Point:
            return [d + PULL * (a - s) for a, d, s in zip(v, g, start, strict=True)]

        own = by_hand(plan, turn, own, correct, "again")
        compare(point(found.state, "ditto/trainable"), own)
        model, state = found.tensors, found.state
    assert max(np.abs(a - b).max() for a, b in zip(own, point(model), strict=True)) > 0.01


HIDDEN = 5


def moons_gradient(
    y: Point, x: Any, label: Any, others: list[Point], mu: float, temperature: float
) -> Point:
    """Of the mean of l_sup + mu l_con for x -> tanh(x a + b) -> softmax(z c + d)."""

    def seen(p: Point) -> Any:
        return np.tanh(x @ p[0] + p[1])

    z = seen(y)
    logits = z @ y[2] + y[3]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(label)), label] -= 1
    p /= len(label)
    back = p @ y[2].T
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    cosines, slopes = [], []
    for other in map(seen, others):
        there = other / np.linalg.norm(other, axis=1, keepdims=True)
        cosine = (unit * there).sum(axis=1, keepdims=True)
        cosines.append(cosine)
        slopes.append((there - cosine * unit) / np.linalg.norm(z, axis=1, keepdims=True))
    weight = 1 / (1 + np.exp((cosines[0] - cosines[1]) / temperature))
    back = back + mu / temperature / len(label) * weight * (slopes[1] - slopes[0])
    inner = back * (1 - z**2)
    return [x.T @ inner, inner.sum(axis=0), z.T @ p, p.sum(axis=0)]


def test_moons_turns_are_those_of_equations_3_and_4(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a network with one hidden layer
    from fluffle.worker.tasks.images import DigitsLr
    from fluffle.worker.tasks.registry import TASKS, load_task
    from fluffle.worker.training.per_plan import make_trainer

    class Small(DigitsLr):
        def model(self) -> Any:
            import keras

            return keras.Sequential(
                [
                    keras.Input((8, 8, 1) if self.dataset().x.ndim == 4 else (8, 8)),
                    keras.layers.Flatten(),
                    keras.layers.Dense(HIDDEN, activation="tanh"),
                    keras.layers.Dense(10, activation="softmax"),
                ]
            )

    monkeypatch.setitem(TASKS, "small", Small)
    mu, temperature = 3.0, 0.4
    plan = plan_of(algorithm="moon", algorithm_parameters={"mu": mu, "temperature": temperature})
    plan = plan.model_copy(update={"task": plan.task.model_copy(update={"name": "small"})})
    trainer, task = make_trainer(plan), load_task(plan)
    model, state = trainer.initial(), dict[str, Any]()
    previous = None
    for turn in (1, 2):
        found = trainer.train(model, "2", turn, None, state)
        base = [model[f"trainable/{i}"].astype(float) for i in range(4)]
        y = [a.copy() for a in base]
        for step in steps_of(plan, "2", turn, EPOCHS, task.client_indices("2")):
            x = task.dataset().x[step].reshape(len(step), -1) / 16
            g = moons_gradient(
                y, x, task.dataset().y[step], [base, previous or base], mu, temperature
            )
            y = [a - RATE * d for a, d in zip(y, g, strict=True)]
        for i, values in enumerate(y):
            np.testing.assert_allclose(found.tensors[f"trainable/{i}"], values, atol=1e-5)
        # Then the next global model is another than what the client had
        previous, state = y, found.state
        model = {k: a * np.float32(0.9) for k, a in found.tensors.items()}


@pytest.mark.parametrize(
    ("training", "why"),
    [
        ({"algorithm": "moon", "algorithm_parameters": {"tau": 1.0}}, "mu, temperature"),
        ({"algorithm": "ditto", "algorithm_parameters": {"pull": -1.0}}, "algorithm_parameters.pu"),
        ({"algorithm": "feddyn"}, "aggregation.strategy = 'feddyn'"),
    ],
)
def test_what_they_do_not_take_is_refused(training: Any, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        plan_of(**training)
