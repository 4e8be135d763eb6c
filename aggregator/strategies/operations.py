"""Small verbs on a strategy's state, so that each algorithm reads like its paper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fluffle.aggregator.strategies.base import State, model_of
from fluffle.aggregator.strategies.fold import Sum, add_scaled, blocks, cast_like, writable
from fluffle.aggregator.strategies.optimizers import ServerOptimizer
from fluffle.schemas import Tensors
from fluffle.schemas.tensors import Array, is_float

_SUM = "buffer/sum/"
_EXACT = "buffer/exact/"


def with_model(weights: Tensors, optimizer: ServerOptimizer | None = None) -> State:
    """A state that holds ``weights`` as its model, what ``optimizer`` keeps, and an empty buffer.

    The optimizer keeps a number per parameter and slot in the model's dtype, or float32 if that
    is smaller.
    """
    state: State = {f"model/{key}": array for key, array in weights.items()}
    for slot, value in (optimizer.start() if optimizer else {}).items():
        for key, array in weights.items():
            if not is_non_trainable(key):
                dtype = np.result_type(array.dtype, np.float32)
                state[f"server/{slot}/{key}"] = np.full(array.shape, value, dtype)
    return state


def is_non_trainable(key: str) -> bool:
    """Whether a tensor always travels as values: the ``non_trainable`` ones (batch-norm)."""
    return key.startswith("non_trainable/")


def is_exact(key: str, array: Array) -> bool:
    """Whether a tensor is taken from one update as it is: integers and truth values have no mean,
    and float64 cannot hold all of them.
    """
    return is_non_trainable(key) and not is_float(array)


def add_to_buffer(
    state: State, weight: float, tensors: Tensors, value_weight: float | None = None
) -> State:
    """Fold ``weight`` times the tensors into the buffer's sums, in place.

    Values that are no parameters have ``value_weight``, if it is another. With them go
    ``buffer/weight``, the sum of the values' weights, and ``buffer/updates``, how many. Exact ones
    are those of the update with the largest weight.
    """
    value_weight = weight if value_weight is None else value_weight
    exact = []
    for key, model in model_of(state).items():
        if is_exact(key, model):
            exact.append(key)
        else:
            add_to_sum(state, key, value_weight if is_non_trainable(key) else weight, tensors[key])
    if exact:
        _take_exact(state, value_weight, {key: tensors[key] for key in exact})
    count(state, "weight", value_weight)
    count(state, "updates", 1)
    return state


def _take_exact(state: State, weight: float, tensors: Tensors) -> None:
    """Keep these where their weight is the largest; of equal ones the larger, in any order."""
    heaviest = buffered(state, "heaviest") if "buffer/heaviest" in state else 0.0
    for key, values in tensors.items():
        stored = state.get(_EXACT + key)
        larger = stored is None or values.reshape(-1).tolist() > stored.reshape(-1).tolist()
        if weight > heaviest or (weight == heaviest and larger):
            state[_EXACT + key] = values.copy()  # a view would keep the whole message
    state["buffer/heaviest"] = np.array(max(weight, heaviest))


def add_to_sum(state: State, key: str, weight: float, values: Array) -> None:
    """Fold ``weight`` times the values into the buffer's sum of one tensor, in place."""
    stored = state.get(_SUM + key)
    total = np.zeros(values.shape) if stored is None else writable(stored)
    add_scaled(total, weight, values)
    state[_SUM + key] = total


def mix_into_buffer(state: State, alpha: float, tensors: Tensors) -> State:
    """buffer <- (1 - alpha) buffer + alpha tensors, in place; an empty buffer is the model.

    Exact ones are those of the newest update.
    """
    for key, model in model_of(state).items():
        if is_exact(key, model):
            state[_EXACT + key] = tensors[key].copy()
            continue
        stored = state.get(_SUM + key)
        total = np.array(model, np.float64) if stored is None else writable(stored)
        total *= 1.0 - alpha
        add_scaled(total, alpha, tensors[key])
        state[_SUM + key] = total
    count(state, "updates", 1)
    return state


def count(state: State, name: str, value: float) -> None:
    """Add to the number ``buffer/<name>``."""
    before = state.get(f"buffer/{name}")
    state[f"buffer/{name}"] = np.array(value + (0.0 if before is None else before.item()))


def buffered(state: State, name: str) -> float:
    """``buffer/weight``, ``buffer/updates`` or another that was counted, as a number."""
    return float(state[f"buffer/{name}"].item())


def sum_of(state: State, key: str, part: slice) -> Sum:
    """A part of the buffer's sum of one tensor, flat."""
    return np.asarray(state[_SUM + key], np.float64).reshape(-1)[part]


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
        if is_exact(key, model):
            following[f"model/{key}"] = state.get(_EXACT + key, model)
            continue
        total = np.asarray(state[_SUM + key], np.float64)
        w = np.asarray(model, np.float64)
        following[f"model/{key}"] = cast_like(formula(key, w, total), model)
    return following


def server_step(
    state: State,
    optimizer: ServerOptimizer,
    delta: Callable[[str, slice], Sum],
    value: Callable[[str, slice, Sum], Sum] | None = None,
    block: int | None = None,
    exact: Callable[[str], Array] | None = None,
) -> State:
    """The state after one step of the server optimizer, its buffer empty.

    ``delta(key, part)`` is what was aggregated of a part of a ``trainable`` tensor, flat, float64;
    ``value(key, part, w)`` of the others: by default their mean; ``exact(key)`` what
    becomes of a tensor of exact values. Part by part, of ``block`` numbers, so that temporaries
    stay in the cache: the memory needed is that of the next state.
    """
    value = value or (lambda key, part, w: mean_of(state, w, sum_of(state, key, part)))
    following: State = {k: a for k, a in state.items() if k.startswith("server/")}
    for key, model in model_of(state).items():
        if is_exact(key, model):
            taken = state.get(_EXACT + key, model) if exact is None else exact(key)
            following[f"model/{key}"] = taken
            continue
        names = {} if is_non_trainable(key) else {s: f"server/{s}/{key}" for s in optimizer.start()}
        made = {name: np.empty(state[name].shape, state[name].dtype) for name in names.values()}
        made[f"model/{key}"] = new = np.empty(model.shape, model.dtype)
        for part in blocks(model.size) if block is None else blocks(model.size, block):
            w = model.reshape(-1)[part].astype(np.float64)
            if is_non_trainable(key):
                w = value(key, part, w)
            else:
                kept = {s: state[n].reshape(-1)[part].astype(np.float64) for s, n in names.items()}
                w, keep = optimizer.apply(w, delta(key, part), kept)
                for slot, array in keep.items():
                    made[names[slot]].reshape(-1)[part] = array
            new.reshape(-1)[part] = cast_like(w, new.reshape(-1)[part])
        following |= made
    return following
