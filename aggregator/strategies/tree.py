"""Small verbs on a strategy's state, so that each algorithm reads like its paper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aggregator.strategies.base import State, model_of
from aggregator.strategies.fold import Sum, add_scaled, cast_like, writable
from schemas import Tensors

_SUM = "buffer/sum/"


def with_model(weights: Tensors) -> State:
    """A state that holds ``weights`` as its model, and an empty buffer."""
    return {f"model/{key}": array for key, array in weights.items()}


def is_value(key: str) -> bool:
    """Whether a tensor always travels as values: the ``non_trainable`` ones (batch-norm)."""
    return key.startswith("non_trainable/")


def add_to_buffer(state: State, weight: float, tensors: Tensors) -> State:
    """Fold ``weight`` times the tensors into the buffer's sums, in place.

    With them go ``buffer/weight``, the sum of the weights, and ``buffer/updates``, how many.
    """
    for key, model in model_of(state).items():
        stored = state.get(_SUM + key)
        total = np.zeros(model.shape) if stored is None else writable(stored)
        add_scaled(total, weight, tensors[key])
        state[_SUM + key] = total
    _count(state, "weight", weight)
    _count(state, "updates", 1)
    return state


def mix_into_buffer(state: State, alpha: float, tensors: Tensors) -> State:
    """buffer <- (1 - alpha) buffer + alpha tensors, in place; an empty buffer is the model."""
    for key, model in model_of(state).items():
        stored = state.get(_SUM + key)
        total = np.array(model, np.float64) if stored is None else writable(stored)
        total *= 1.0 - alpha
        add_scaled(total, alpha, tensors[key])
        state[_SUM + key] = total
    _count(state, "updates", 1)
    return state


def _count(state: State, name: str, value: float) -> None:
    before = state.get(f"buffer/{name}")
    state[f"buffer/{name}"] = np.array(value + (0.0 if before is None else before.item()))


def buffered(state: State, name: str) -> float:
    """``buffer/weight`` or ``buffer/updates`` as a number."""
    return float(state[f"buffer/{name}"].item())


def mean_of(state: State, w: Sum, total: Sum) -> Sum:
    """The buffer's weighted mean of one tensor; the model's own where nothing had any weight."""
    weight = buffered(state, "weight")
    return total / weight if weight > 0 else w


def next_version(state: State, formula: Callable[[str, Sum, Sum], Sum]) -> State:
    """The state with each model tensor replaced by ``formula(key, w, sum)``, its buffer empty.

    ``w`` is the tensor as float64; the result is cast back to its dtype. ``server/`` stays.
    """
    following: State = {k: a for k, a in state.items() if k.startswith("server/")}
    for key, model in model_of(state).items():
        total = np.asarray(state[_SUM + key], np.float64)
        w = np.asarray(model, np.float64)
        following[f"model/{key}"] = cast_like(formula(key, w, total), model)
    return following
