"""SCAFFOLD's client. Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic
Controlled Averaging for Federated Learning, arXiv 1910.06378, Algorithm 1 and equations 3 and 4::

    K times:  y <- y - eta_l (g_i(y) - c_i + c)
    c_i+ <- (I) g_i(x)   or   (II) c_i - c + (x - y) / (K eta_l)
    send (y - x, c_i+ - c_i);  c_i <- c_i+

x and c come with the global model (the group ``control``), c_i is what the client keeps: zero
before its first turn. g_i(x) is the gradient of the mean loss over all of the client's examples.
A client whose c_i is lost takes c for it: its step is not corrected, and what it adds to c does not
count its first c_i twice, as zero would.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from fluffle.schemas import Plan, Tensors, group
from fluffle.schemas.tensors import Array, named
from fluffle.worker.training import optimizers
from fluffle.worker.training.execution import Execution
from fluffle.worker.training.trainer import BUILDING, Trained, Trainer, mean_over_batches, seeds_of


class Corrected:
    """An optimizer that adds a constant, ``c - c_i``, to every gradient (equation 3)."""

    def __init__(self, optimizer: optimizers.Optimizer, variables: Sequence[Any]) -> None:
        self._optimizer = optimizer
        self._corrections = [
            tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False) for v in variables
        ]

    def correct(self, corrections: Sequence[Array]) -> None:
        """From now on; called outside the graph."""
        for variable, value in zip(self._corrections, corrections, strict=True):
            variable.assign(value)

    def reset(self) -> None:
        self._optimizer.reset()

    def apply(self, gradients: Sequence[Any]) -> None:
        self._optimizer.apply(
            [
                None if g is None else tf.convert_to_tensor(g) + correction
                for g, correction in zip(gradients, self._corrections, strict=True)
            ]
        )


class ScaffoldTrainer(Trainer):
    """Trains with control variates, by option I or II of the paper as the plan asks."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        variables = self._parameters
        self._corrected = Corrected(optimizers.make(plan.training, variables), variables)

    def train(
        self,
        base: Tensors,
        client: str,
        turn: int | str,
        epochs: int | None = None,
        state: Tensors | None = None,
    ) -> Trained:
        """As ``Trainer``; the update has the group ``control``, and so has the client's state.

        Raises: ValueError also where the strategy's ``control`` is missing.
        """
        started = time.perf_counter()
        x, c = group("trainable", base), group("control", base)
        own = c if state is None else group("control", state) or [np.zeros_like(a) for a in c]
        if not len(x) == len(c) == len(own):
            raise ValueError("a control variate for each trainable tensor is missing")
        self._corrected.correct([np.subtract(a, b) for a, b in zip(c, own, strict=True)])
        trained = super().train(base, client, turn, epochs)
        if self._plan.asks == "control-variate-I":
            following = self._gradient_at(base, client, turn)
        else:
            y = group("trainable", trained.tensors)
            length = self._steps(trained.examples, epochs) * self._plan.training.learning_rate
            following = along_the_path(own, c, x, y, length)
        changes = [np.subtract(a, b) for a, b in zip(following, own, strict=True)]
        return replace(
            trained,
            extra=named("control", changes),
            state=named("control", following),
            seconds=time.perf_counter() - started,
        )

    def _optimizer(self) -> optimizers.Optimizer:
        return self._corrected

    def _gradient_at(self, base: Tensors, client: str, turn: int | str) -> list[Array]:
        """g_i(x), layers such as dropout and batch normalisation being as in training."""
        indices = self._task.client_indices(client)
        seeds = seeds_of(f"{self._plan.seed}:{client}:{turn}:x", len(self._generators))
        function, execution = self._gradient
        with execution.loop():
            sums = function(self._checked(base), tf.constant(indices), seeds)
        return [s.numpy() for s in sums]

    @cached_property
    def _gradient(self) -> tuple[Any, Execution]:
        with BUILDING:
            examples = self._shared("dataset")
            variables = self._parameters
            values = [v.value for v in variables]
            sums = [tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False) for v in variables]

            def step(batch: Any) -> Any:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(values)
                    loss = self._loss(*examples.take(batch), training=True)
                for total, gradient in zip(sums, tape.gradient(loss, values), strict=True):
                    if gradient is not None:
                        size = tf.cast(tf.size(batch), total.dtype)
                        total.assign_add(tf.convert_to_tensor(gradient) * size)
                return loss

            execution = Execution(step)

            def gradient(weights: list[Any], indices: Any, seeds: Any) -> Any:
                self._assign(weights)
                for i, generator in enumerate(self._generators):
                    generator.assign(tf.cast(seeds[i], generator.dtype))
                for total in sums:
                    total.assign(tf.zeros_like(total))
                mean_over_batches(execution, indices, self._plan.training.batch_size)
                return [total / tf.cast(tf.size(indices), total.dtype) for total in sums]

            seeds = tf.TensorSpec([len(self._generators), 2], tf.int64)
            return self._traced(gradient, execution, seeds)


def along_the_path(
    own: Sequence[Array], c: Sequence[Array], x: Sequence[Array], y: Sequence[Array], length: float
) -> list[Array]:
    """Option II: c_i - c + (x - y) / length, where length is K eta_l."""
    following = []
    for tensors in zip(own, c, x, y, strict=True):
        a, b, start, end = (np.asarray(tensor, np.float64) for tensor in tensors)
        following.append((a - b + (start - end) / length).astype(tensors[0].dtype))
    return following
