"""Local training: the whole run of one client is one TensorFlow function.

Epochs, shuffling, batches, gradients, the optimizer and the metrics are loops and kernels inside
one graph, over one tensor of examples that all trainers of the process share. Keras is the model
API; it is called while the graph is traced, which happens once for each trainer.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from schemas import Plan, Tensors
from schemas.tensors import named, spec
from worker import optimizers
from worker.task import Task
from worker.tasks import load_task

#: Examples per step of an evaluation: enough for the matrix kernels, little memory.
_EVALUATION_BATCH = 250

#: Building models and tracing take process-wide state (the seeds that initialisers draw).
_BUILDING = threading.RLock()

_tensors: WeakKeyDictionary[Task, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Trained:
    """What one client's local training gave."""

    #: The local values, named as the model that it started from.
    tensors: Tensors
    #: How many examples the client has.
    examples: int
    #: The loss and the task's metrics over the last epoch, as ``fit`` reports them.
    metrics: dict[str, float]
    seconds: float


class Trainer:
    """Trains and evaluates one plan's model. One for each thread; any number in a process."""

    def __init__(self, plan: Plan) -> None:
        """Raises: UserError if the plan names no task or optimizer."""
        self._plan = plan
        self._task = load_task(plan)
        with _seeded(plan.seed):
            self._model = self._task.model()
        self._model.compile(
            optimizer=None, loss=self._task.loss, metrics=[_own(m) for m in self._task.metrics]
        )
        known = {id(v) for v in self._model.weights}
        #: The states of seed generators (dropout and its like): they stay here.
        self._generators = [v for v in self._model.variables if id(v) not in known]
        self._weights = [*self._model.trainable_weights, *self._model.non_trainable_weights]
        self._spec = spec(_payload(self._model))

    def initial(self) -> Tensors:
        """The weights of version 0: a function of the plan's seed alone."""
        with _seeded(self._plan.seed):
            return _payload(self._task.model())

    def train(self, base: Tensors, client: str, turn: int) -> Trained:
        """The client's local training, from ``base``: a function of (base, seed, client, turn).

        Raises: ValueError if ``base`` does not fit the model, the client is unknown or has no
        examples.
        """
        started = time.perf_counter()
        weights = self._checked(base)
        indices = self._task.client_indices(client)
        if not len(indices):
            raise ValueError(f"client {client} has no examples")
        seeds = _seeds(f"{self._plan.seed}:{client}:{turn}", 1 + len(self._generators))
        with _inline():
            values, metrics = self._train_function(weights, tf.constant(indices), seeds)
        tensors = dict(zip(self._spec, (v.numpy() for v in values), strict=True))
        return Trained(tensors, len(indices), _floats(metrics), time.perf_counter() - started)

    def evaluate(self, weights: Tensors) -> tuple[dict[str, float], int]:
        """The loss and the task's metrics on test examples, and how many those are.

        Raises: ValueError if ``weights`` do not fit the model.
        """
        values = self._checked(weights)
        with _inline():
            metrics = self._evaluate_function(values, tf.constant(self._test_indices))
        return _floats(metrics), len(self._test_indices)

    def _checked(self, tensors: Tensors) -> list[Any]:
        if (found := spec(tensors)) != self._spec:
            wrong = next(iter(dict(found.items() ^ self._spec.items())), None)
            raise ValueError(
                f"these weights do not fit the model of {self._plan.task.name}: {wrong} is "
                f"{found.get(wrong or '')}, not {self._spec.get(wrong or '')}"
            )
        return [tf.convert_to_tensor(tensors[name]) for name in self._spec]

    @cached_property
    def _test_indices(self) -> NDArray[np.int32]:
        total = len(self._task.test().y)
        wanted = min(self._plan.evaluation.examples or total, total)
        chosen = np.random.default_rng(self._plan.seed).permutation(total)[:wanted]
        return np.sort(chosen).astype(np.int32)

    @cached_property
    def _train_function(self) -> Any:
        with _BUILDING:
            x, y = _shared(self._task, "dataset")
            self._build_metrics(x, y)
            optimizer = optimizers.make(self._plan.training, self._model.trainable_variables)
            seeds = tf.TensorSpec([1 + len(self._generators), 2], tf.int64)
            function = tf.function(self._train_graph(x, y, optimizer), autograph=False)
            return function.get_concrete_function(self._signature(), _INDICES, seeds)

    @cached_property
    def _evaluate_function(self) -> Any:
        with _BUILDING:
            x, y = _shared(self._task, "test")
            self._build_metrics(x, y)
            function = tf.function(self._evaluate_graph(x, y), autograph=False)
            return function.get_concrete_function(self._signature(), _INDICES)

    def _signature(self) -> list[Any]:
        return [tf.TensorSpec(v.shape, v.dtype) for v in self._weights]

    def _build_metrics(self, x: Any, y: Any) -> None:
        """Metrics make their variables with the first batch, which must not be in a graph."""
        self._model.compute_metrics(None, y[:1], self._model(self._task.preprocess(x[:1])))

    def _train_graph(self, x: Any, y: Any, optimizer: optimizers.Optimizer) -> Callable[..., Any]:
        table = self._plan.training
        variables = self._model.trainable_variables

        def step(batch: Any) -> Any:
            targets = tf.gather(y, batch)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([v.value for v in variables])
                loss = self._loss(tf.gather(x, batch), targets, training=True)
            optimizer.apply(tape.gradient(loss, [v.value for v in variables]))
            return loss

        def epoch(number: Any, indices: Any, seed: Any) -> Any:
            self._model.reset_metrics()
            seed = tf.random.experimental.stateless_fold_in(seed, number)
            order = tf.random.experimental.stateless_shuffle(indices, seed, alg="philox")
            return _mean_over_batches(step, order, table.batch_size)

        def train(weights: list[Any], indices: Any, seeds: Any) -> Any:
            self._assign(weights)
            for i, generator in enumerate(self._generators):
                generator.assign(tf.cast(seeds[i + 1], generator.dtype))
            optimizer.reset()
            _, loss = tf.while_loop(
                lambda number, loss: number < table.epochs,
                lambda number, loss: (number + 1, epoch(number, indices, seeds[0])),
                (0, tf.constant(0.0)),
                parallel_iterations=1,
            )
            return [tf.identity(v.value) for v in self._weights], self._results(loss)

        return train

    def _evaluate_graph(self, x: Any, y: Any) -> Callable[..., Any]:
        def step(batch: Any) -> Any:
            return self._loss(tf.gather(x, batch), tf.gather(y, batch), training=False)

        def evaluate(weights: list[Any], indices: Any) -> Any:
            self._assign(weights)
            self._model.reset_metrics()
            return self._results(_mean_over_batches(step, indices, _EVALUATION_BATCH))

        return evaluate

    def _assign(self, weights: list[Any]) -> None:
        for variable, value in zip(self._weights, weights, strict=True):
            variable.assign(value)

    def _loss(self, x: Any, y: Any, training: bool) -> Any:
        """The loss of a batch, regularisation included; counts it in the metrics."""
        predicted = self._model(self._task.preprocess(x), training=training)
        loss = self._model.compute_loss(x, y, predicted, training=training)
        self._model.compute_metrics(x, y, predicted)
        return loss

    def _results(self, loss: Any) -> dict[str, Any]:
        return {**self._model.get_metrics_result(), "loss": loss}


_INDICES = tf.TensorSpec([None], tf.int32)


def _mean_over_batches(step: Callable[[Any], Any], indices: Any, batch_size: int) -> Any:
    """The mean of ``step(batch)`` over examples. The last batch has what is left."""
    total = tf.size(indices)

    def body(start: Any, loss: Any) -> tuple[Any, Any]:
        end = tf.minimum(start + batch_size, total)
        return end, loss + step(indices[start:end]) * tf.cast(end - start, tf.float32)

    _, loss = tf.while_loop(
        lambda start, loss: start < total, body, (0, tf.constant(0.0)), parallel_iterations=1
    )
    return loss / tf.cast(total, tf.float32)


def _inline() -> AbstractContextManager[None]:
    """Trace and call a function so that its kernels run one by one in the calling thread.

    A training has one core: handing kernels from thread to thread costs a third of its time.
    The executor that does this knows no devices but the host's.
    """
    gpu = tf.config.list_physical_devices("GPU")
    executor: AbstractContextManager[None] = tf.experimental.function_executor_type(
        "" if gpu else "SINGLE_THREADED_EXECUTOR"
    )
    return executor


def _shared(task: Task, part: str) -> tuple[Any, Any]:
    """The task's examples as tensors, made once for all trainers of the process."""
    with _BUILDING:
        made = _tensors.setdefault(task, {})
        if part not in made:
            examples = task.dataset() if part == "dataset" else task.test()
            made[part] = (tf.constant(examples.x), tf.constant(examples.y))
        return made[part]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Keras's initialisers draw from the process-wide generators: seeded here, then put back."""
    with _BUILDING:
        python, numpy = random.getstate(), np.random.get_state()
        keras.utils.set_random_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _own(metric: Any) -> Any:
    """A metric object keeps its counts in variables: each trainer has its own."""
    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def _payload(model: keras.Model) -> Tensors:
    return {
        **named("trainable", [v.numpy() for v in model.trainable_weights]),
        **named("non_trainable", [v.numpy() for v in model.non_trainable_weights]),
    }


def _seeds(text: str, count: int) -> NDArray[np.int64]:
    """``count`` independent pairs of 32-bit numbers, shape (count, 2)."""
    digest = hashlib.shake_128(text.encode()).digest(8 * count)
    return np.frombuffer(digest, "<i4").astype(np.int64).reshape(count, 2)


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if not value.shape.rank}
