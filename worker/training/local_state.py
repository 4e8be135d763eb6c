"""State that layers keep beside their weights: what it must not do to a version's output.

Keras's ``Normalization`` computes with constants that it makes of its weights once, when it is
adapted: here it reads the weights. Stateful recurrent layers carry on from the batch before: a
training and an evaluation start from zero.
"""

from __future__ import annotations

from typing import Any

import keras

from fluffle.schemas import UserError
from fluffle.worker.training.variables import layers_of


def read_statistics(model: keras.Model) -> None:
    """Have each ``Normalization`` that was adapted compute with its weights, as they are."""
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
            kind = type(layer)
            layer.__class__ = type(kind.__name__, (_Reading, kind), {})


def use_statistics(model: keras.Model) -> None:
    """Have each ``Normalization`` make its constants anew, after weights were assigned."""
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def forget(model: keras.Model) -> None:
    """Set the states of stateful recurrent layers to zero; also builds graph."""
    for state in recurrent_states(model):
        state.assign(keras.ops.zeros_like(state.value))


def recurrent_states(model: keras.Model) -> list[Any]:
    """The variables that stateful recurrent layers carry on."""
    layers = [layer for layer in layers_of(model) if getattr(layer, "stateful", False)]
    return [state for layer in layers for state in keras.tree.flatten(layer.states or ())]


def batch_of(model: keras.Model) -> int | None:
    """How many examples this model takes at once, no more and no fewer; None where any number.

    Raises: UserError where its inputs do not agree.
    """
    sizes = {tensor.shape[0] for tensor in getattr(model, "inputs", None) or ()} - {None}
    if len(sizes) > 1:
        raise UserError(f"the model's inputs have different batch sizes: {sorted(sizes)}")
    return sizes.pop() if sizes else None


def fixed_batch(model: keras.Model, batch_size: int) -> int | None:
    """As ``batch_of``. Raises: UserError where trainings have another ``batch_size``."""
    whole = batch_of(model)
    if whole not in (None, batch_size):
        raise UserError(
            f"the model takes batches of {whole}, no more and no fewer: set "
            f"training.batch_size = {whole}, not {batch_size}"
        )
    return whole


class _Reading:
    """A ``Normalization`` whose mean and variance are its weights, in the shape of its inputs."""

    def _statistic(self: Any, weight: Any) -> Any:
        return keras.ops.cast(keras.ops.reshape(weight, self._broadcast_shape), self.compute_dtype)

    @property
    def mean(self: Any) -> Any:
        return self._statistic(self.adapt_mean)

    @mean.setter
    def mean(self: Any, value: Any) -> None:
        """Made of the weights: nothing to set."""

    @property
    def variance(self: Any) -> Any:
        return self._statistic(self.adapt_variance)

    @variance.setter
    def variance(self: Any, value: Any) -> None:
        """Made of the weights: nothing to set."""
