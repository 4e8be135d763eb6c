"""Verbs for strategies that need the single updates: they are kept as ``buffer/<n>/<tensor>``.

Memory: as many models as the buffer has updates, so ``aggregation.quorum`` bounds it. A partial
checkpoint of the open buffer writes them all. A step takes them in the order of their turns, not of
their arrival, so that every sum over them has the same bytes in any order of arrival.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluffle.aggregator.strategies.base import State, model_of
from fluffle.aggregator.strategies.operations import buffered, count, is_non_trainable
from fluffle.schemas import ClientUpdate, UserError
from fluffle.schemas.codec import MAX_DATA_BYTES, MAX_TENSORS


def keep_update(state: State, update: ClientUpdate, weight: float) -> State:
    """Keep one update, its deltas scaled by ``weight``, in the dtype that it came in."""
    count(state, "updates", 1)
    number = int(buffered(state, "updates")) - 1
    tensors, size = len(update.tensors) + 1, sum(a.nbytes + 8 for a in update.tensors.values())
    if (number + 2) * tensors > MAX_TENSORS or (number + 2) * size > MAX_DATA_BYTES:
        raise UserError(
            f"this strategy keeps every update of a buffer, and a checkpoint holds no more than "
            f"{number} of this model: choose a smaller aggregation.quorum, or norm-bounding"
        )
    digest = hashlib.sha256(update.update_id.encode()).digest()[:8]
    state[f"buffer/{number}/order"] = np.array([update.turn, int.from_bytes(digest)], np.uint64)
    for key in model_of(state):
        values: NDArray[Any] = update.tensors[key]
        if weight != 1 and not is_non_trainable(key):
            values = np.multiply(values, weight, dtype=np.float64).astype(values.dtype)
        state[f"buffer/{number}/{key}"] = values
    return state


def in_turn(state: State) -> list[int]:
    """The numbers of the kept updates, by their turns (and ids: resident clients have no turns)."""
    numbers = range(int(buffered(state, "updates")))
    return sorted(numbers, key=lambda number: state[f"buffer/{number}/order"].tolist())


def rows_of(state: State, numbers: list[int], key: str, part: slice) -> list[NDArray[Any]]:
    """A part of one tensor of these updates, flat: as many arrays as there are updates."""
    return [state[f"buffer/{number}/{key}"].reshape(-1)[part] for number in numbers]
