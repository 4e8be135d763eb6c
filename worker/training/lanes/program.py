"""The compiled program of the JAX engine: ``vmap`` over clients of ``scan`` over steps.

Keras models are called without state: weights, statistics, seeds of dropout, the optimizer's slots
and the metrics go from step to step as values. Examples lie on the device once, and a step gathers
its own. Weights are float32 on the device, as JAX has them by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from fluffle.worker.tasks.structure import mapped
from fluffle.worker.training.lanes.layout import Shape

Values = list[Any]


class Program:
    """Steps of one Keras model, which is compiled with its loss and metrics."""

    def __init__(
        self,
        model: keras.Model,
        parameters: Sequence[Any],
        others: Sequence[Any],
        optimizer: Any,
        preprocess: Callable[[Any], Any],
        proximal_mu: float = 0.0,
    ) -> None:
        """
        parameters: what is trained; others: whatever else the model computes with or changes.
        """
        self._model = model
        self._parameters = list(parameters)
        self._others = list(others)
        self._optimizer = optimizer
        self._preprocess = preprocess
        self._mu = proximal_mu
        self._metrics = list(model.metrics_variables)
        model.reset_metrics()
        self._zero = [jnp.asarray(v.value) for v in self._metrics]
        self._slots = [jnp.asarray(v.value) for v in optimizer.variables]
        rate = optimizer._learning_rate
        self._rate = next((i for i, v in enumerate(optimizer.variables) if v is rate), None)

    def training(self, shape: Shape, shared: bool) -> Callable[..., Any]:
        """For (weights, others, indices, counts, rest, rates, data): (weights, others, metrics).

        All by lane, but for ``data``, which is (x, y, weights of examples or None), and for the
        weights that a training begins with where these are ``shared``.
        """

        def one(
            base: Values,
            others: Values,
            indices: Any,
            counts: Any,
            rest: Any,
            rates: Any,
            data: Any,
        ) -> Any:
            last = jnp.arange(shape.epochs) == shape.epochs - 1
            slots = list(self._slots)
            carry = (list(base), others, slots, list(self._zero), jnp.zeros(()))

            def epoch(carry: Any, xs: Any) -> Any:
                indices, counts, rest, rates, measured = xs

                def row(carry: Any, xs: Any) -> Any:
                    indices, count, rate = xs
                    mask = jnp.arange(shape.batch_size) < count if shape.masked else None
                    new = self._step(carry, base, data, indices, mask, count, rate, measured)
                    if shape.skips:
                        new = jax.tree.map(lambda a, b: jnp.where(count > 0, a, b), new, carry)
                    return new, None

                if shape.rows:
                    carry, _ = jax.lax.scan(row, carry, (indices, counts, rates[: shape.rows]))
                if shape.rest:
                    carry = self._step(
                        carry, base, data, rest, None, shape.rest, rates[-1], measured
                    )
                return carry, None

            carry, _ = jax.lax.scan(epoch, carry, (indices, counts, rest, rates, last))
            weights, others, _, metrics, loss = carry
            examples = counts[0].sum() + shape.rest
            return weights, others, self._results(metrics, loss / examples)

        return jax.jit(jax.vmap(one, in_axes=(None if shared else 0, 0, 0, 0, 0, 0, None)))

    def evaluation(self, shape: Shape) -> Callable[..., Any]:
        """For (weights, others, indices, counts, rest, data): the metrics."""

        def measure(
            weights: Values, others: Values, indices: Any, counts: Any, rest: Any, data: Any
        ) -> Any:
            def step(carry: Any, indices: Any, mask: Any, count: Any) -> Any:
                metrics, total = carry
                loss, (_, metrics) = self._forward(
                    weights, others, metrics, data, indices, mask, count, training=False
                )
                return metrics, total + loss * count

            def row(carry: Any, xs: Any) -> Any:
                indices, count = xs
                mask = jnp.arange(shape.batch_size) < count if shape.masked else None
                new = step(carry, indices, mask, count)
                if shape.skips:
                    new = jax.tree.map(lambda a, b: jnp.where(count > 0, a, b), new, carry)
                return new, None

            carry: Any = (list(self._zero), jnp.zeros(()))
            if shape.rows:
                carry, _ = jax.lax.scan(row, carry, (indices[0], counts[0]))
            if shape.rest:
                carry = step(carry, rest[0], None, shape.rest)
            metrics, loss = carry
            return self._results(metrics, loss / (counts[0].sum() + shape.rest))

        return jax.jit(measure)

    def _step(
        self,
        carry: Any,
        base: Values,
        data: Any,
        indices: Any,
        mask: Any,
        count: Any,
        rate: Any,
        measured: Any,
    ) -> Any:
        """One step of the optimizer; metrics count where this is the last epoch."""
        weights, others, slots, metrics, total = carry
        (loss, (others, new)), gradients = jax.value_and_grad(self._forward, has_aux=True)(
            weights, others, metrics, data, indices, mask, count, training=True
        )
        if self._mu:  # FedProx, arXiv 1812.06127, equation 2
            gradients = [
                g + self._mu * (w - b) for g, w, b in zip(gradients, weights, base, strict=True)
            ]
        if self._rate is not None:
            slots = [*slots]
            slots[self._rate] = rate
        weights, slots = self._optimizer.stateless_apply(slots, gradients, weights)
        metrics = [jnp.where(measured, a, b) for a, b in zip(new, metrics, strict=True)]
        total = total + jnp.where(measured, loss * count, 0.0)
        return list(weights), others, list(slots), metrics, total

    def _forward(
        self,
        weights: Values,
        others: Values,
        metrics: Values,
        data: Any,
        indices: Any,
        mask: Any,
        count: Any,
        training: bool,
    ) -> Any:
        """The loss of a batch, and (others, metrics) as they are after it."""
        x, y, weight = data
        x, y = (mapped(lambda array: array[indices], part) for part in (x, y))
        of_loss = weight[indices] if training and weight is not None else None
        if mask is not None:
            # The loss is a mean over rows: those that are masked count nothing, the others more.
            scale = mask * (mask.shape[0] / jnp.maximum(count, 1)).astype(jnp.float32)
            of_loss = scale if of_loss is None else of_loss * scale
        held = [*zip(self._parameters, weights, strict=True)]
        held += zip(self._others, others, strict=True)
        held += zip(self._metrics, metrics, strict=True)
        with keras.StatelessScope(state_mapping=held) as scope:
            predicted = self._model(self._preprocess(x), training=training)
            of_steps = _along(of_loss, predicted)
            loss = self._model.compute_loss(x, y, predicted, of_steps, training=training)
            of_metrics = None if mask is None else mask.astype(jnp.float32)
            self._model.compute_metrics(x, y, predicted, _along(of_metrics, predicted))
        after = [scope.get_current_value(v) for v in self._others]
        counted = [scope.get_current_value(v) for v in self._metrics]
        return jnp.asarray(loss, jnp.float32), (after, counted)

    def _results(self, metrics: Values, loss: Any) -> dict[str, Any]:
        held = list(zip(self._metrics, metrics, strict=True))
        with keras.StatelessScope(state_mapping=held):
            found = {**self._model.get_metrics_result(), "loss": loss}
        return found


def _along(weights: Any, predicted: Any) -> Any:
    """Weights of examples, shape (n,), as Keras takes them for outputs that have more axes.

    A sequence's steps all weigh what the sequence does: (n, 1) for predictions (n, steps, classes).
    """
    more = getattr(predicted, "ndim", 2) - 2
    if weights is None or weights.ndim > 1 or more < 1:
        return weights
    return weights.reshape(-1, *(1,) * more)
