"""Optimizers with parameters, schedules, and state that is kept: against plain NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fluffle.aggregator.ledger.writer import Ledger
from fluffle.schemas import Experiment, Plan, Tensors, UserError
from fluffle.simulation.virtual import VirtualRun
from tests.worker.softmax import Point, gradient, steps_of

pytestmark = pytest.mark.tensorflow

RATE, EXAMPLES = 0.2, 20


def tables(**training: Any) -> dict[str, Any]:
    """One batch, of all of a client's examples: their order does not matter."""
    return {
        "task": {"name": "digits-lr", "clients": 6},
        "partition": {"examples_per_client": EXAMPLES},
        "training": {"optimizer": "sgd", "learning_rate": RATE, "epochs": 3, **training},
    }


def trained(
    version: int = 0, state: Tensors | None = None, base: Tensors | None = None, **training: Any
) -> tuple[Any, Point, Any]:
    """What client 2 trains, from which weights, and its gradient as a function of the weights."""
    from fluffle.worker.tasks.registry import load_task
    from fluffle.worker.training.per_plan import make_trainer

    plan = Plan.of(Experiment.model_validate(tables(**training)), "delta")
    trainer, task = make_trainer(plan), load_task(plan)
    base = base or trainer.initial()
    found = trainer.train(base, "2", 1, None, {} if state is None else state, version)
    indices = task.client_indices("2")
    start = [base[f"trainable/{i}"].astype(float) for i in range(2)]
    return found, start, lambda point: gradient(point, task.dataset(), indices)


def compare(found: Any, expected: Point, atol: float = 2e-6) -> None:
    for i, values in enumerate(expected):
        np.testing.assert_allclose(found.tensors[f"trainable/{i}"], values, atol=atol)


def test_clipping_and_weight_decay_with_exceptions() -> None:
    parameters = {"global_clipnorm": 0.3, "weight_decay": 0.1, "no_decay": ["bias"]}
    found, (w, b), g = trained(optimizer_parameters=parameters)
    b = b + 0.0
    for _ in range(3):
        gw, gb = g([w, b])
        length = np.sqrt((gw**2).sum() + (gb**2).sum())
        assert length > 0.3  # it is shortened
        gw, gb = gw * 0.3 / length, gb * 0.3 / length
        w = w - 0.1 * RATE * w
        w, b = w - RATE * gw, b - RATE * gb
    compare(found, [w, b])


def test_ema_gives_the_average_of_the_path() -> None:
    found, point, g = trained(optimizer_parameters={"use_ema": True, "ema_momentum": 0.7})
    average = None
    for _ in range(3):
        point = [a - RATE * d for a, d in zip(point, g(point), strict=True)]
        average = (
            point
            if average is None
            else [0.7 * m + 0.3 * a for m, a in zip(average, point, strict=True)]
        )
    assert average is not None
    compare(found, average)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_accumulated_gradients_are_a_step_for_every_so_many_batches(optimizer: str) -> None:
    # Given batches of 8, 8 and 4 examples, of which every two make a step, and one is left over
    from fluffle.worker.tasks.registry import load_task
    from fluffle.worker.training.per_plan import make_trainer

    document = tables(
        **{"optimizer": optimizer, "batch_size": 8},
        **{"optimizer_parameters": {"gradient_accumulation_steps": 2}},
    )
    plan = Plan.of(Experiment.model_validate(document), "delta")
    trainer, task = make_trainer(plan), load_task(plan)
    base = trainer.initial()
    # When another client has trained before, whose last batch was left over as well
    trainer.train(base, "3", 1)
    found = trainer.train(base, "2", 1)
    # Then it is the loop by hand: means of two gradients at the same weights, the last one left out
    point = [base[f"trainable/{i}"].astype(float) for i in range(2)]
    batches = steps_of(plan, "2", 1, 3, task.client_indices("2"))
    assert len(batches) == 9
    first, second = ([np.zeros_like(a) for a in point] for _ in range(2))
    for number in range(4):
        pair = [gradient(point, task.dataset(), b) for b in batches[2 * number : 2 * number + 2]]
        g = [(a + b) / 2 for a, b in zip(*pair, strict=True)]
        if optimizer == "sgd":
            point = [a - RATE * d for a, d in zip(point, g, strict=True)]
            continue
        t = number + 1  # the bias correction counts steps, not batches
        first = [m + (d - m) * 0.1 for m, d in zip(first, g, strict=True)]
        second = [v + (d**2 - v) * 0.001 for v, d in zip(second, g, strict=True)]
        rate = RATE * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        point = [
            a - rate * m / (np.sqrt(v) + 1e-7) for a, m, v in zip(point, first, second, strict=True)
        ]
    # Adam's corrections are 1 - 0.999 in float32, which has five digits of it.
    compare(found, point, 2e-6 if optimizer == "sgd" else 2e-4)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({"kind": "cosine", "over": 2, "floor": 0.2}, [1, 0.6, 0.2]),
        ({"kind": "step", "every": 2, "factor": 0.5}, [1, 1, 0.5]),
        ({"kind": "constant", "warmup": 2}, [0.5, 1, 1]),
        ({"kind": "cosine", "warmup": 1, "over": 2}, [1, 1, 0.5]),
    ],
)
@pytest.mark.parametrize("optimizer", [{}, {"optimizer_parameters": {"clipnorm": 1e9}}])
def test_the_rate_over_local_steps(
    schedule: dict[str, Any], rates: list[float], optimizer: dict[str, Any]
) -> None:
    # Given the compiled SGD, and Keras's own
    found, point, g = trained(local_schedule=schedule, **optimizer)
    for rate in rates:
        point = [a - RATE * rate * d for a, d in zip(point, g(point), strict=True)]
    compare(found, point)


def test_the_rate_over_versions_is_that_of_the_version_that_is_trained() -> None:
    schedule = {"kind": "step", "every": 10, "factor": 0.5}
    found, point, g = trained(version=25, epochs=1, version_schedule=schedule)
    compare(found, [a - RATE / 4 * d for a, d in zip(point, g(point), strict=True)])


@pytest.mark.parametrize("optimizer", [{}, {"optimizer_parameters": {"clipnorm": 1e9}}])
def test_momentum_that_is_kept_goes_on_from_the_clients_last_turn(optimizer: Any) -> None:
    options: dict[str, Any] = {"momentum": 0.9, "epochs": 2, "optimizer_state": "keep", **optimizer}
    first, point, g = trained(**options)
    then, _, _ = trained(state=first.state, base=first.tensors, **options)
    velocity = [np.zeros_like(a) for a in point]
    for _ in range(4):
        velocity = [0.9 * v - RATE * d for v, d in zip(velocity, g(point), strict=True)]
        point = [a + v for a, v in zip(point, velocity, strict=True)]
    compare(then, point)
    # And a client that kept nothing, or whose state is lost, begins anew
    lost, _, _ = trained(base=first.tensors, **options)
    assert np.abs(lost.tensors["trainable/0"] - then.tensors["trainable/0"]).max() > 1e-3


def test_a_run_that_keeps_and_schedules_is_the_same_on_any_slots(tmp_path: Path) -> None:
    document = tables(
        optimizer="adam", optimizer_state="keep", version_schedule={"kind": "cosine", "over": 5}
    )
    document |= {"experiment": {"versions": 6}, "participation": {"concurrency": 3}}
    document |= {"evaluation": {"every_updates": 0}}
    hashes = []
    for slots in (1, 2):
        folder = tmp_path / str(slots)
        run = VirtualRun(Experiment.model_validate(document), folder, run_id="run", slots=slots)
        assert run.run() == "finished"
        ledger = Ledger(folder)
        hashes.append(ledger.query("SELECT weights_sha256 FROM versions ORDER BY version"))
        ledger.close()
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) >= 6


@pytest.mark.parametrize(
    ("training", "why"),
    [
        ({"optimizer": "adamm"}, "did you mean Adam"),
        ({"optimizer": "adamw", "optimizer_parameters": {"weight_deca": 1.0}}, "weight_decay. Ad"),
        ({"optimizer_parameters": {"beta_1": 0.9}}, "SGD takes momentum"),
        ({"optimizer_parameters": {"clipnorm": 1.0, "global_clipnorm": 1.0}}, "SGD: Only one of"),
    ],
)
def test_what_keras_does_not_know_is_refused_with_what_it_does(training: Any, why: str) -> None:
    from fluffle.worker.training.trial import check

    with pytest.raises(UserError, match=why):
        check(Experiment.model_validate(tables(**training)))


@pytest.mark.parametrize(
    ("training", "strategy", "why"),
    [
        ({"local_schedule": {"kind": "cosine"}}, "fedbuff", "over"),
        ({"local_schedule": {"kind": "linear"}}, "fedbuff", "kind"),
        ({"version_schedule": {"kind": "step", "every": 2}}, "scaffold", "constant learning rate"),
        ({"optimizer_state": "keep"}, "fednova", "remove training.optimizer_state"),
    ],
)
def test_what_does_not_belong_is_refused(training: Any, strategy: str, why: str) -> None:
    document = {**tables(**training), "aggregation": {"strategy": strategy}}
    with pytest.raises(ValidationError, match=why):
        Experiment.model_validate(document)
