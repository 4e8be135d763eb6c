"""Gradients of a batch, as Keras's ``fit`` takes them: scaled where the model computes in float16.

Micikevicius et al.: Mixed Precision Training, arXiv 1710.03740, section 3.2, by the rule of
``keras.optimizers.LossScaleOptimizer``: the loss times s; a step whose gradients are not finite is
left out and halves s, 2,000 good ones in a row double it. s starts anew with each training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from fluffle.schemas import UserError


class Optimizer(Protocol):
    """What takes gradients; the methods build graph."""

    def reset(self) -> None:
        """A training begins."""
        ...

    def apply(self, gradients: Sequence[Any]) -> None:
        """One step."""
        ...

    def finish(self) -> None:
        """A training ends."""
        ...


_FIRST_SCALE, _GROWS_AFTER = 2.0**15, 2000


def scaled_for(model: keras.Model, optimizer: Optimizer) -> Optimizer:
    """The optimizer, with a loss scale where ``fit`` has one: policy mixed_float16."""
    return LossScaled(optimizer) if model.dtype_policy.name == "mixed_float16" else optimizer


def objective(optimizer: Optimizer, loss: Any) -> Any:
    """What to differentiate for this optimizer; within the tape."""
    return optimizer.scaled(loss) if isinstance(optimizer, LossScaled) else loss


def gradients_of(tape: tf.GradientTape, loss: Any, values: Sequence[Any]) -> list[Any]:
    """One for each value, None where the loss does not depend on it. Raises: UserError."""
    found: list[Any] = tape.gradient(loss, values)
    if all(gradient is None for gradient in found):
        raise UserError(
            "no gradient: the loss depends on no trainable weight of the model (stop_gradient, "
            "rounding, argmax or NumPy on the way cut it off)"
        )
    return found


class LossScaled:
    """An optimizer that takes gradients of the loss times a scale."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._scale = tf.Variable(_FIRST_SCALE, trainable=False)
        self._good = tf.Variable(0, trainable=False)

    def scaled(self, loss: Any) -> Any:
        """The loss times the scale."""
        return loss * tf.cast(self._scale, loss.dtype)

    def reset(self) -> None:
        """Forget everything."""
        self._optimizer.reset()
        self._scale.assign(_FIRST_SCALE)
        self._good.assign(0)

    def finish(self) -> None:
        """A training ends."""
        self._optimizer.finish()

    def apply(self, gradients: Sequence[Any]) -> None:
        """One step, or none where the scale was too large."""
        dense = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
        unscaled = [None if g is None else g / tf.cast(self._scale, g.dtype) for g in dense]
        finite = [tf.reduce_all(tf.math.is_finite(g)) for g in unscaled if g is not None]

        def step() -> Any:
            self._optimizer.apply(unscaled)
            grows = self._good.assign_add(1) >= _GROWS_AFTER
            larger = tf.where(tf.math.is_finite(self._scale * 2), self._scale * 2, self._scale)
            self._scale.assign(tf.where(grows, larger, self._scale))
            return self._good.assign(tf.where(grows, 0, self._good))

        def leave_out() -> Any:
            self._scale.assign(self._scale / 2)
            return self._good.assign(0)

        tf.cond(tf.reduce_all(finite), step, leave_out)
