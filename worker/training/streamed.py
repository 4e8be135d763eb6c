"""Local training on a stream: data that do not fit in memory, through a compiled loop.

One epoch is one TensorFlow function over a ``tf.data`` iterator; batches are made, and read ahead,
while the one before is trained on. All else is the trainer's: its loss, optimizer and metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import tensorflow as tf

from fluffle.schemas import Tensors
from fluffle.worker.tasks.task import StreamedTask, batched
from fluffle.worker.training.algorithms.base import Batch
from fluffle.worker.training.building import BUILDING, floats
from fluffle.worker.training.local_state import forget
from fluffle.worker.training.seeds import Purpose, Streams, seeds_of
from fluffle.worker.training.trained import Trained
from fluffle.worker.training.trainer import Trainer


class StreamingTrainer(Trainer):
    """Trains clients of a ``StreamedTask``; evaluates in memory, as every trainer."""

    def _train(
        self,
        base: Tensors,
        streams: Streams,
        epochs: int | None,
        purpose: Purpose = "order",
    ) -> Trained:
        """The examples are those that one epoch of the stream has.

        Raises: ValueError if ``base`` does not fit the model or the stream is empty; UserError.
        """
        assert isinstance(self._task, StreamedTask)
        weights, client = self._checked(base), streams.client
        seeds = streams.seeds(purpose, 1 + len(self._generators))
        begin, early, last, finish = self._loops
        begin(weights, tf.constant(seeds))
        self._context.begin()
        epochs = self._plan.training.epochs if epochs is None else epochs
        for number in range(epochs):
            ((seed, _),) = seeds_of(f"{seeds[0]}:{number}", 1)
            stream = self._task.stream(client, int(seed) & 0x7FFFFFFF)
            batches = iter(batched(stream, self._plan.training.batch_size, self._whole is not None))
            if number == epochs - 1:
                self._model.reset_metrics()
            loss, count = (last if number == epochs - 1 else early)(batches)
            if not count:
                raise ValueError(f"client {client} has no examples")
        finish()
        values = self._named([v.value for v in self._weights])
        metrics = floats(self._results(loss))
        return Trained(values, int(count), metrics)

    @cached_property
    def _loops(self) -> tuple[Callable[..., Any], ...]:
        """What begins a training, an epoch without metrics, one with, and what ends it."""
        with BUILDING:
            self._shared("test")  # metrics make their variables
            optimizer, (stage,) = self._optimizer(), self._stages

        def begin(weights: list[Any], seeds: Any) -> None:
            self._assign(weights)
            forget(self._model)
            for i, generator in enumerate(self._generators):
                generator.assign(tf.cast(seeds[i + 1], generator.dtype))
            optimizer.reset()

        def epoch(measured: bool) -> Callable[..., Any]:
            def body(batches: Any, loss: Any, count: Any) -> tuple[Any, Any, Any]:
                batch = batches.get_next_as_optional()

                def train() -> tuple[Any, Any]:
                    examples = batch.get_value()
                    size = tf.shape(tf.nest.flatten(examples[1])[0])[0]
                    mean = self._step(optimizer, Batch(*examples), measured, stage)
                    added = tf.cast(mean, tf.float32) * tf.cast(size, tf.float32)
                    return loss + added, count + size

                more = batch.has_value()
                return more, *tf.cond(more, train, lambda: (loss, count))

            def run(batches: Any) -> tuple[Any, Any]:
                _, loss, count = tf.while_loop(
                    lambda more, loss, count: more,
                    lambda more, loss, count: body(batches, loss, count),
                    (tf.constant(True), tf.constant(0.0), tf.constant(0)),
                    parallel_iterations=1,
                )
                return loss / tf.cast(tf.maximum(count, 1), tf.float32), count

            return tf.function(run, autograph=False)  # type: ignore[no-any-return]

        finish = tf.function(optimizer.finish, autograph=False)
        return tf.function(begin, autograph=False), epoch(False), epoch(True), finish
