"""Optimizers as Keras has them, with whatever parameters they take."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import keras

from fluffle.schemas import UserError
from fluffle.schemas.experiment import TrainingTable


def of_keras(table: TrainingTable) -> Any:
    """The optimizer as Keras has it. Raises: UserError where it has none of this name, or it does
    not take the parameters.
    """
    kind, parameters = _class_of(table.optimizer), dict(table.optimizer_parameters or {})
    no_decay = parameters.pop("no_decay", [])
    taken = [n for n in inspect.signature(kind.__init__).parameters if n not in _NO_PARAMETERS]
    for name in parameters:
        if name not in taken:
            near = difflib.get_close_matches(name, taken, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"training.optimizer_parameters.{name}: {meant}{kind.__name__} takes "
                f"{', '.join(taken)}, and no_decay"
            )
    if table.optimizer.lower() == "sgd":
        parameters = {"momentum": table.momentum, "nesterov": table.nesterov} | parameters
    try:
        made = kind(learning_rate=table.learning_rate, **parameters)
        if no_decay:
            made.exclude_from_weight_decay(var_names=no_decay)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"training.optimizer_parameters: {kind.__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    return made


#: What is said by keys of their own, or is no parameter.
_NO_PARAMETERS = ("self", "learning_rate", "name", "kwargs", "loss_scale_factor")


def _class_of(name: str) -> Any:
    """The class of keras.optimizers by this name, in any case. Raises: UserError."""
    known = {
        made.__name__: made
        for made in vars(keras.optimizers).values()
        if inspect.isclass(made)
        and issubclass(made, keras.optimizers.Optimizer)
        and made.__name__ not in ("Optimizer", "LossScaleOptimizer")
    }
    by_name = {made.lower(): made for made in known}
    if name.lower() in by_name:
        return known[by_name[name.lower()]]
    near = difflib.get_close_matches(name.lower(), by_name, n=1)
    meant = f"; did you mean {by_name[near[0]]}?" if near else ""
    raise UserError(
        f"training.optimizer = {name!r} is neither sgd, adam, nor another optimizer of "
        f"keras.optimizers: {', '.join(sorted(known))}{meant}"
    )
