"""Groups of a model's weights, by patterns over their paths: which travel (``[weights]``).

    send      travels up and down, as every weight does without ``[weights]``
    keep      stays with the client, in its state: personal layers
    freeze    is not trained: every worker builds it, from the task and the run's seed, and a hash
              of it travels (``non_trainable/frozen.sha256``), so that no two have different ones

FedPer (arXiv 1912.00818), FedRep (2102.07078) and FedBN (2102.07623) keep, LoRA (2106.09685) and
linear probing freeze. What travels is named by its path, ``trainable/dense/kernel``; within the
trainer weights have the numbers that they have without groups.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import keras
import numpy as np

from fluffle.schemas import Tensors, UserError
from fluffle.schemas.experiment import WeightsTable
from fluffle.schemas.tensors import FROZEN, spec
from fluffle.worker.training.message_size import check_fits
from fluffle.worker.training.variables import layers_of, parameters_of, payload, values_of

Group = Literal["send", "keep", "freeze"]
#: Where a client's state has what it keeps of the model.
_PERSONAL = "personal/"


class Travel:
    """What becomes of each weight of one model, which has the values of version 0."""

    def __init__(self, table: WeightsTable, model: keras.Model) -> None:
        """Freezes what is to be frozen. Raises: UserError where the patterns do not fit."""
        groups = groups_of(table, model)
        _freeze(model, {key for key, group in groups.items() if group == "freeze"})
        paths, first = paths_of(model), payload(model)
        weights = [*parameters_of(model), *values_of(model)]
        of = {name: groups[id(v)] for name, v in zip(first, weights, strict=False)}
        self._wire = {
            name: f"{name.partition('/')[0]}/{paths[id(v)]}"
            for name, v in zip(first, weights, strict=False)
        }
        self._sent = [name for name in first if of.get(name, "send") == "send"]
        self._kept = [name for name, group in of.items() if group == "keep"]
        self._frozen = [name for name, group in of.items() if group == "freeze"]
        #: Of each weight, in the order in which they travel without groups: its group.
        self.groups = [groups[id(v)] for v in weights]
        self._first = first
        if not any(name.startswith("trainable/") for name in self._sent):
            raise UserError("[weights]: nothing that is trained would travel")
        self._hash = None
        if self._frozen:
            digest = hashlib.sha256()
            for name in self._frozen:
                digest.update(f"{self._wire[name]}\n".encode())
                digest.update(np.ascontiguousarray(first[name]).tobytes())
            self._hash = np.frombuffer(digest.digest(), np.uint8)

    @property
    def keeps(self) -> bool:
        """Whether clients have weights of their own."""
        return bool(self._kept)

    def initial(self) -> Tensors:
        """What of version 0 travels."""
        return self.outward(self._first)

    def outward(self, tensors: Tensors) -> Tensors:
        """What of a whole model travels, by its paths."""
        sent = {self._wire.get(name, name): tensors[name] for name in self._sent}
        return sent if self._hash is None else {**sent, FROZEN: self._hash}

    def inward(self, base: Tensors, state: Tensors | None = None) -> Tensors:
        """The whole model, with what a client keeps, or as it was at first where it keeps nothing.

        Raises: ValueError if ``base`` does not fit; UserError if what is frozen is another.
        """
        if self._hash is not None:
            if FROZEN not in base:
                raise ValueError(f"these weights do not fit the model: {FROZEN} is missing")
            if not np.array_equal(base[FROZEN], self._hash):
                raise UserError(
                    "weights that are frozen have other values here than where version 0 was made: "
                    "model() has to build them the same everywhere (the same file, the same Keras)"
                )
        whole = {}
        for name, first in self._first.items():
            wire = self._wire.get(name, name)
            if name in self._sent:
                if wire not in base:
                    raise ValueError(f"these weights do not fit the model: {wire} is missing")
                whole[name] = base[wire]
            else:
                whole[name] = (state or {}).get(_PERSONAL + wire, first)
        return whole

    def personal(self, tensors: Tensors) -> Tensors:
        """What of a whole model a client keeps."""
        return {_PERSONAL + self._wire[name]: tensors[name] for name in self._kept}


def check_travels(model: keras.Model, travel: Travel | None, copies: int = 1) -> None:
    """Raises: UserError where a message does not hold what travels of the model.

    copies: of the trainable tensors; a strategy may send something of their size along.
    """
    sent = payload(model) if travel is None else travel.initial()

    def paths() -> dict[str, str]:
        known, weights = paths_of(model), [*parameters_of(model), *values_of(model)]
        return dict(zip(sent, (known[id(v)] for v in weights), strict=False))

    check_fits(spec(sent), dict if travel is not None else paths, copies)


def groups_of(table: WeightsTable, model: keras.Model) -> Mapping[int, Group]:
    """The group of each weight, by its identity. Raises: UserError where patterns do not fit."""
    paths = paths_of(model)
    rest: Group = "freeze" if table.send is not None and table.freeze is None else "send"
    found: dict[int, Group] = {}
    for group in get_args(Group):
        for pattern in getattr(table, group) or ():
            matching = [key for key, path in paths.items() if fnmatchcase(path, pattern)]
            if not matching:
                raise UserError(
                    f"weights.{group}: {pattern!r} is none of the model's weights, which are "
                    f"{', '.join(list(paths.values())[:40])}"
                )
            for key in matching:
                if found.setdefault(key, group) != group:
                    raise UserError(
                        f"weights: {paths[key]} is to {found[key]} and to {group}: patterns of two "
                        "groups fit it"
                    )
    return {key: found.get(key, rest) for key in paths}


def paths_of(model: keras.Model) -> dict[int, str]:
    """The path of each weight by its identity: layer/…/name, the same wherever the model is built.

    Names that Keras has made up are numbered within the model: it counts them by process.
    """
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    for layer in layers_of(model):
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(layer).__name__).lower()
        made_up = re.fullmatch(rf"({snake}|sequential|functional|model)(_\d+)?", layer.name)
        if made_up and layer is not model and layer.name not in names:
            number = counts[made_up[1]] = counts.get(made_up[1], -1) + 1
            names[layer.name] = f"{made_up[1]}_{number}" if number else made_up[1]
    found: dict[int, str] = {}
    taken: set[str] = set()
    for v in model.weights:
        parts = v.path.split("/")
        parts = parts[1:] if parts[0] == model.name and len(parts) > 1 else parts
        path = "/".join(re.sub(r"[^A-Za-z0-9_.-]", "_", names.get(p, p)) for p in parts)
        number, unique = 1, path
        while unique in taken:
            unique, number = f"{path}.{number}", number + 1
        found[id(v)] = unique
        taken.add(unique)
    return found


def _freeze(model: keras.Model, frozen: set[int]) -> None:
    """Layers that are frozen as a whole behave so: batch normalisation keeps its statistics."""
    for layer in layers_of(model):
        own: list[Any] = [v for v in layer.weights if id(v) in frozen]
        if layer.weights and len(own) == len(layer.weights):
            layer.trainable = False
        for v in own:
            v.trainable = False
