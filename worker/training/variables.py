"""Variables of a Keras model: which travel as parameters and which as values, and what stays.

Whatever decides a version's output travels with it: the weights; and of look-up tables, which are
no weights, a hash, so that a worker with other tables says so instead of giving other answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from fluffle.schemas import Tensors, UserError
from fluffle.schemas.tensors import DTYPES, named


def parameters_of(model: keras.Model) -> list[Any]:
    """What is trained: trainable weights of a floating-point dtype."""
    return [v for v in model.trainable_weights if _is_float(v)]


def values_of(model: keras.Model) -> list[Any]:
    """The other weights, which travel as values. An integer has no gradient, whatever it is called.

    Raises: UserError for a dtype that cannot travel.
    """
    for v in model.weights:
        if v.dtype not in DTYPES:
            raise UserError(f"the weight {v.path} is {v.dtype}: such cannot travel")
    integers = [v for v in model.trainable_weights if not _is_float(v)]
    return [*integers, *model.non_trainable_weights]


def payload(model: keras.Model) -> Tensors:
    """The model's weights, named as they travel."""
    values: list[Any] = [np.asarray(v.value) for v in values_of(model)]
    if (tables := tables_of(model)) is not None:
        values.append(tables)
    return {
        **named("trainable", [np.asarray(v.value) for v in parameters_of(model)]),
        **named("non_trainable", values),
    }


def generators_of(model: keras.Model) -> list[Any]:
    """The states of seed generators (dropout and its like): they stay here."""
    known = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in known and v.name == "seed_generator_state"]


def tables_of(model: keras.Model) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """A hash of all vocabularies and bins that layers were given or have adapted, shape (32,)."""
    found: list[list[Any]] = []
    for layer in layers_of(model):
        if hasattr(layer, "get_vocabulary"):
            found.append([str(word) for word in layer.get_vocabulary()])
            found.append(np.asarray(getattr(layer, "idf_weights", None) or []).tolist())
        elif isinstance(layer, keras.layers.Discretization):
            found.append([float(edge) for edge in layer.bin_boundaries or []])
    if not found:
        return None
    return np.frombuffer(hashlib.sha256(repr(found).encode()).digest(), np.uint8)


def layers_of(model: keras.Model) -> Sequence[Any]:
    """All layers, those within others too."""
    return list(model._flatten_layers())


def _is_float(variable: Any) -> bool:
    return "float" in variable.dtype


def has_own(model: keras.Model, method: str) -> bool:
    """Whether the model's class has written this method, not Keras."""
    home = next(kind for kind in type(model).__mro__ if method in vars(kind))
    return not home.__module__.startswith("keras.")
