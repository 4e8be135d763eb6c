"""Optimizers inside the compiled training loop.

SGD (plain, momentum, Nesterov) and Adam are one TensorFlow kernel per variable and step, with the
numbers of Keras's own; any other Keras optimizer runs as Keras has it. State starts anew with each
``reset``: it belongs to one client's turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import tensorflow as tf

from fluffle.schemas.experiment import TrainingTable
from fluffle.worker.training.keras_optimizers import of_keras


class Optimizer(Protocol):
    """The methods build graph: they are called while the training loop is traced."""

    #: A number, or a tensor for the step that is traced next.
    learning_rate: Any

    @property
    def variables(self) -> Sequence[Any]:
        """All that it remembers from step to step."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...

    def apply(self, gradients: Sequence[Any]) -> None:
        """One step: a gradient for each variable, None where the loss does not depend on it."""
        ...

    def finish(self) -> None:
        """A training ends."""
        ...


def make(table: TrainingTable, variables: Sequence[Any]) -> Optimizer:
    """The optimizer of a training plan for these Keras variables. Raises: UserError."""
    name = table.optimizer.lower()
    if table.optimizer_parameters is not None:
        return OfKeras(table, variables)
    if name == "sgd":
        return Sgd(table.learning_rate, table.momentum, table.nesterov, variables)
    if name == "adam":
        return Adam(table.learning_rate, variables)
    return OfKeras(table, variables)


class _Fused:
    """What the kernels share: slots, and the constraints of Keras variables."""

    def __init__(self, variables: Sequence[Any]) -> None:
        self._variables = variables
        self.variables: list[Any] = []

    def finish(self) -> None:
        """Nothing is left to do."""

    def _slots(self) -> list[Any]:
        return [tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False) for v in self._variables]

    def apply(self, gradients: Sequence[Any]) -> None:
        for i, (variable, gradient) in enumerate(zip(self._variables, gradients, strict=True)):
            if gradient is not None:
                self._update(i, variable.value.handle, tf.convert_to_tensor(gradient))
                if variable.constraint is not None:
                    variable.assign(variable.constraint(variable))

    def _update(self, i: int, handle: Any, gradient: Any) -> None:
        raise NotImplementedError


class Sgd(_Fused):
    """keras.optimizers.SGD."""

    def __init__(
        self, learning_rate: float, momentum: float, nesterov: bool, variables: Sequence[Any]
    ) -> None:
        super().__init__(variables)
        self.learning_rate = learning_rate
        self._momentum = momentum
        self._nesterov = nesterov
        self._velocities = self._slots() if momentum else []
        self.variables = self._velocities

    def reset(self) -> None:
        for slot in self._velocities:
            slot.assign(tf.zeros_like(slot))

    def _update(self, i: int, handle: Any, gradient: Any) -> None:
        rate = tf.cast(self.learning_rate, gradient.dtype)
        if not self._velocities:
            tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=rate, delta=gradient)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=handle,
            accum=self._velocities[i].handle,
            lr=rate,
            grad=gradient,
            momentum=tf.cast(self._momentum, gradient.dtype),
            use_nesterov=self._nesterov,
        )


class Adam(_Fused):
    """keras.optimizers.Adam with its defaults (Kingma and Ba 2014, arXiv 1412.6980)."""

    _BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7

    def __init__(self, learning_rate: float, variables: Sequence[Any]) -> None:
        super().__init__(variables)
        self.learning_rate = learning_rate
        self._momentums = self._slots()
        self._velocities = self._slots()
        self._step = tf.Variable(0, dtype=tf.int32, trainable=False)
        self.variables = [self._step, *self._momentums, *self._velocities]

    def reset(self) -> None:
        for slot in (self._step, *self._momentums, *self._velocities):
            slot.assign(tf.zeros_like(slot))

    def apply(self, gradients: Sequence[Any]) -> None:
        step = tf.cast(self._step.assign_add(1), tf.float32)
        self._powers = tf.pow(self._BETA_1, step), tf.pow(self._BETA_2, step)
        super().apply(gradients)

    def _update(self, i: int, handle: Any, gradient: Any) -> None:
        constants = {
            "beta1_power": self._powers[0],
            "beta2_power": self._powers[1],
            "lr": self.learning_rate,
            "beta1": self._BETA_1,
            "beta2": self._BETA_2,
            "epsilon": self._EPSILON,
        }
        tf.raw_ops.ResourceApplyAdam(
            var=handle,
            m=self._momentums[i].handle,
            v=self._velocities[i].handle,
            grad=gradient,
            **{name: tf.cast(value, gradient.dtype) for name, value in constants.items()},
        )


class OfKeras:
    """Any optimizer of keras.optimizers, by name."""

    def __init__(self, table: TrainingTable, variables: Sequence[Any]) -> None:
        self._optimizer = of_keras(table)
        self._variables = variables
        self._optimizer.build(variables)
        self.variables: list[Any] = list(self._optimizer.variables)
        # Not every slot starts at zero: Adagrad's and Ftrl's do not.
        self._initial = [tf.identity(v.value) for v in self.variables]

    @property
    def learning_rate(self) -> Any:
        """A variable of Keras's."""
        return self._optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._optimizer.learning_rate.assign(value)

    def reset(self) -> None:
        for variable, initial in zip(self.variables, self._initial, strict=True):
            variable.assign(initial)

    def finish(self) -> None:
        """With EMA the weights become their averages, as at the end of ``fit``."""
        self._optimizer.finalize_variable_values(self._variables)

    def apply(self, gradients: Sequence[Any]) -> None:
        self._optimizer.apply(gradients, self._variables)
