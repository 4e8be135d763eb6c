"""Norms: how long updates are, and how long one may be before it is taken for an attack.

One valid message must not take the model over. An update is as many vectors as it has groups of
tensors: of deltas their length counts, of values how far they are from the model's. Each is held
against the median of those that the last versions count, and before there are enough of them
against the model itself. Buffers that are open decide nothing, so that neither the order of arrival
nor a redelivery changes what is accepted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from statistics import median

from fluffle.aggregator.coordinator.effects import Fold
from fluffle.aggregator.strategies.fold import squared_norm
from fluffle.schemas import Tensors
from fluffle.schemas.experiment import AdmissionTable
from fluffle.schemas.tensors import is_float

#: The median is over the updates of so many versions, once there are so many updates.
VERSIONS, ENOUGH = 20, 10
#: Until then a group may be so many times as long as the model and a vector of ones.
_AT_FIRST = 1e6
#: Below this share of that length nothing is too long: the median may be next to nothing.
_ALWAYS = 0.1


def norms_of(tensors: Tensors, model: Tensors, sends: str) -> dict[str, float]:
    """The length of each group of an update; ``sends`` says what its trainable tensors are."""
    squares: dict[str, float] = {}
    for key, array in tensors.items():
        if is_float(array):
            group = key.split("/")[0]
            is_delta = group == "trainable" and sends == "delta"
            base = None if is_delta else model.get(key)
            squares[group] = squares.get(group, 0.0) + squared_norm(array, base)
    return {group: sqrt(total) for group, total in squares.items()}


class Recent:
    """What the last versions were made of, and the bounds that follow from it."""

    def __init__(self, table: AdmissionTable, versions: Iterable[Sequence[Fold]] = ()) -> None:
        """``versions``: the updates of the last ``VERSIONS``, the oldest first."""
        self._table = table
        self._versions = deque(versions, VERSIONS)
        self._limits: dict[str, float] = {}
        self._model_length: float | None = None

    def add(self, folds: Sequence[Fold]) -> None:
        """Another version has been made of these."""
        self._versions.append([fold for fold in folds if fold.turn > 0])
        self._limits.clear()
        self._model_length = None

    def most_examples(self) -> float:
        """An update that claims more was trained on more than anybody has."""
        most, factor = float(self._table.max_examples), self._table.examples_factor
        if factor and "examples" not in self._limits:
            known = [fold.examples for fold in self._folds()]
            relative = factor * median(known) if len(known) >= ENOUGH else most
            self._limits["examples"] = min(most, relative)
        return self._limits.get("examples", most)

    def too_long(self, norms: Mapping[str, float], tensors: Tensors, model: Tensors) -> bool:
        """Whether a group is far longer than those of the others."""
        return self._table.norm_factor > 0 and any(
            not norm <= self._limit(group, tensors, model) for group, norm in norms.items()
        )

    def _limit(self, group: str, tensors: Tensors, model: Tensors) -> float:
        key = f"{group}/"
        if key not in self._limits:
            known = [fold.norms[group] for fold in self._folds() if group in fold.norms]
            size = sum(a.size for k, a in tensors.items() if k.startswith(key))
            scale = self._length(model) + sqrt(size)
            self._limits[key] = (
                max(self._table.norm_factor * median(known), _ALWAYS * scale)
                if len(known) >= ENOUGH
                else _AT_FIRST * scale
            )
        return self._limits[key]

    def _length(self, model: Tensors) -> float:
        if self._model_length is None:
            floats = [array for array in model.values() if is_float(array)]
            self._model_length = sqrt(sum(map(squared_norm, floats)))
        return self._model_length

    def _folds(self) -> Iterable[Fold]:
        return (fold for folds in self._versions for fold in folds)
