"""What every engine shares: models built from a seed, test examples, metrics as numbers."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import Plan, UserError, user_code
from fluffle.worker.tasks.losses import named_accuracy
from fluffle.worker.tasks.structure import count_of
from fluffle.worker.tasks.task import Task, examples_of

#: Building models and tracing take process-wide state (the seeds that initialisers draw).
BUILDING = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Keras's initialisers draw from the process-wide generators: seeded here, then put back."""
    with BUILDING:
        python, numpy = random.getstate(), np.random.get_state()
        keras.utils.set_random_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def test_indices(plan: Plan, task: Task) -> NDArray[np.int32]:
    """Which test examples an evaluation uses."""
    total = count_of(examples_of(task, "test").y)
    wanted = min(plan.evaluation.examples or total, total)
    chosen = np.random.default_rng(plan.seed).permutation(total)[:wanted]
    return np.sort(chosen).astype(np.int32)


def examples_for(task: Task, client: str, whole: int | None) -> NDArray[np.int32]:
    """Which examples this client trains on. Raises: ValueError where they make no batch.

    whole: how many examples the model takes at once, where it takes no other number.
    """
    indices = task.client_indices(client)
    if len(indices) < (whole or 1):
        few = f"fewer than {whole}" if whole else "no"
        raise ValueError(f"client {client} has {few} examples")
    return indices


def not_finite(task: Task, part: str, example: int) -> UserError:
    """What to say where the loss is no number for want of numbers in an example's inputs."""
    return UserError(
        f"{user_code.file_of(type(task)).name}: {part}(): the inputs of example {example} hold NaN "
        "or infinity, and so does the loss: fill in what is missing, or leave the example out"
    )


def of_validation(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics of the validation part, as an evaluation names them."""
    return {f"validation_{name}": value for name, value in metrics.items()}


def floats(metrics: dict[str, Any]) -> dict[str, float]:
    """The results as numbers; a result of several values as NAME_0, NAME_1, …"""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        values = np.asarray(value, np.float64)
        if values.ndim == 0:
            found[name] = float(values)
        else:
            found |= {f"{name}_{i}": float(v) for i, v in enumerate(values.reshape(-1))}
    return named_accuracy(found)
