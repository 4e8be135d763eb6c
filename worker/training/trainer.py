"""Local training: the whole run of one client is one TensorFlow function.

Epochs, shuffling, batches, gradients, the optimizer and the metrics are loops and kernels inside
one graph, over one tensor of examples that all trainers of the process share. Keras is the model
API; it is called while the graph is traced, which happens once for each trainer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fluffle.schemas import Plan, Tensors, UserError
from fluffle.schemas.tensors import Array, misfit, model_groups, spec
from fluffle.worker.tasks.by_client import ByClient
from fluffle.worker.tasks.losses import compile_model
from fluffle.worker.tasks.registry import load_task
from fluffle.worker.tasks.task import Task
from fluffle.worker.training.algorithms import registry as algorithms
from fluffle.worker.training.algorithms.base import Batch, Given, Turn
from fluffle.worker.training.batches import Batches
from fluffle.worker.training.building import (
    BUILDING,
    examples_for,
    floats,
    not_finite,
    of_validation,
    seeded,
    test_indices,
)
from fluffle.worker.training.context import Context, Steered
from fluffle.worker.training.execution import Execution
from fluffle.worker.training.gradients import Optimizer, gradients_of, objective, scaled_for
from fluffle.worker.training.interrupt import TrainingStopped, Watch
from fluffle.worker.training.local_state import fixed_batch, forget, read_statistics
from fluffle.worker.training.phases import Stage, stages_of
from fluffle.worker.training.schedules import LocalOptimizer
from fluffle.worker.training.seeds import Purpose, Streams
from fluffle.worker.training.tensor_cache import TensorCache
from fluffle.worker.training.trained import Trained
from fluffle.worker.training.travel import Travel, check_travels, paths_of
from fluffle.worker.training.trial import check_model
from fluffle.worker.training.variables import (
    generators_of,
    has_own,
    parameters_of,
    payload,
    tables_of,
    values_of,
)

T = TypeVar("T")

#: Examples per step of an evaluation: enough for the matrix kernels, little memory.
_EVALUATION_BATCH = 250
#: No client has more examples, and twice as many are an int32.
_MOST = 2**30

_bases = TensorCache()
_tensors: WeakKeyDictionary[Task, dict[str, Batches]] = WeakKeyDictionary()


class Trainer:
    """Trains and evaluates one plan's model. One for each thread; any number in a process."""

    def __init__(self, plan: Plan) -> None:
        """Raises: UserError if there is no such task."""
        self._plan = plan
        self._task = load_task(plan)
        with seeded(plan.seed):
            self._model = self._task.model()
        self._travel = None if plan.weights is None else Travel(plan.weights, self._model)
        self._compile()
        check_model(self._model)
        read_statistics(self._model)
        self._generators = generators_of(self._model)
        self._parameters = parameters_of(self._model)
        self._weights = [*self._parameters, *values_of(self._model)]
        self._tables = tables_of(self._model)
        #: How many examples the model takes at once, where it takes no other number.
        self._whole = fixed_batch(self._model, plan.training.batch_size)
        self._spec = spec(payload(self._model))
        copies = 2 if plan.asks in ("control-variate-I", "control-variate-II") else 1
        check_travels(self._model, self._travel, copies)
        self._algorithm = algorithms.algorithm_of(plan)
        #: Told while a training runs that it is to end; None where the plan stops none.
        self._stopped = None if plan.stops_beyond is None else tf.Variable(False, trainable=False)
        #: Whether the step that is being traced counts in the metrics.
        self._measured = False
        self._context = Context(
            self._parameters,
            loss_of=self._loss_of,
            predict=lambda batch: self._model(self._task.preprocess(batch.x), training=True),
            preprocess=self._task.preprocess,
        )

    def _compile(self) -> None:
        if not self.has_own_steps:
            compile_model(self._task, self._model)

    @property
    def has_own_steps(self) -> bool:
        """Whether the model trains or tests by a step of its own, which this trainer does not."""
        return has_own(self._model, "train_step") or has_own(self._model, "test_step")

    @property
    def plan(self) -> Plan:
        """The plan that it trains."""
        return self._plan

    @property
    def task(self) -> Task:
        """The plan's task."""
        return self._task

    def adopt(self, plan: Plan) -> None:
        """Go on with another plan, of the same shape and with the same examples (``sharing``)."""
        self._plan, self._task = plan, load_task(plan)
        for made in ("_test_indices", "_by_client"):
            self.__dict__.pop(made, None)

    def initial(self) -> Tensors:
        """The weights of version 0: a function of the plan's seed alone."""
        if self._travel is not None:
            return self._travel.initial()
        with seeded(self._plan.seed):
            return payload(self._task.model())

    def train(
        self,
        base: Tensors,
        client: str,
        turn: int,
        epochs: int | None = None,
        state: Tensors | None = None,
        version: int = 0,
        stop: Callable[[], bool] | None = None,
    ) -> Trained:
        """The client's local training: a function of its arguments and the run's seed.

        base: the model, and what the strategy sent with it.
        turn, version: which of the client's trainings this is, and the base's version; both tell
            its random streams from all others, and the learning rate may depend on the latter.
        epochs: how many it does, where those are fewer than the plan's (a straggler).
        state: what the client kept from its last turn: empty at first, None where it is lost.
        stop: asked now and then, from another thread; where the plan stops trainings.
        Raises: ValueError if ``base`` does not fit the model, the client is unknown or has no
        examples; UserError if there is no such optimizer; TrainingStopped after the batch during
        which ``stop`` says yes.
        """
        if stop is None or self._stopped is None:
            return self._train_turn(base, client, turn, epochs, state, version)
        stopped = self._stopped
        stopped.assign(False)
        with Watch(stop, lambda: stopped.assign(True)) as watch:
            try:
                trained = self._train_turn(base, client, turn, epochs, state, version)
            except Exception:
                if not watch.struck:
                    raise
        if watch.struck:
            raise TrainingStopped
        return trained

    def _train_turn(
        self,
        base: Tensors,
        client: str,
        turn: int,
        epochs: int | None,
        state: Tensors | None,
        version: int,
    ) -> Trained:
        started = time.perf_counter()
        streams = Streams(self._plan.seed, client, turn, version)
        turn_of = self._turn(base, streams, epochs, state)
        self._local_optimizer.begin(version, state)
        self._context.give(self._trying(lambda: self._algorithm.before(turn_of)))
        whole = base if self._travel is None else self._travel.inward(base, state)
        trained = self._train(whole, streams, epochs)
        optimizer = self._local_optimizer.kept()
        personal: Tensors = {}
        own: Tensors = {}
        if self._travel is not None:
            personal = self._travel.personal(trained.tensors)
            own = trained.tensors if personal else {}
            trained = replace(trained, tensors=self._travel.outward(trained.tensors))
        after = self._trying(lambda: self._algorithm.after(turn_of, trained.tensors))
        own = self._trying(lambda: self._algorithm.personal_model(after.keep)) or own
        return replace(
            trained,
            metrics=trained.metrics | self._personal_metrics(client, own),
            extra=after.send,
            state=after.keep | optimizer | personal,
            seconds=time.perf_counter() - started,
        )

    def _turn(
        self,
        base: Tensors,
        streams: Streams,
        epochs: int | None,
        state: Tensors | None,
    ) -> Turn:
        """What the algorithm sees of a turn."""

        def local_training(start: Tensors, given: Given) -> Tensors:
            self._context.give(given)
            local = self._train(self._whole_of(start), streams, epochs, "again").tensors
            return local if self._travel is None else self._travel.outward(local)

        return Turn(
            plan=self._plan,
            client=streams.client,
            base=base,
            state=state,
            steps=self._steps(len(self._task.client_indices(streams.client)), epochs),
            local_training=local_training,
            full_gradient=lambda: self._gradient_at(self._whole_of(base), streams),
        )

    def _whole_of(self, base: Tensors, state: Tensors | None = None) -> Tensors:
        """The whole model, personal weights as a client keeps them, or as they were at first."""
        return base if self._travel is None else self._travel.inward(base, state)

    def _personal_metrics(self, client: str, whole: Tensors) -> dict[str, float]:
        """How the client's own model does on test examples like its own, where that is asked and
        there is one. What a site measures stays there.
        """
        if not (self._plan.evaluation.by_client and client.isdecimal() and whole):
            return {}
        own = ByClient(self._task, self._test_indices, only=int(client))
        function, execution = self._evaluation
        values = self._checked(whole)
        with execution.loop():
            found = own.measure(lambda indices: floats(function(values, tf.constant(indices))))
        return {
            name.replace("client_", "personal_").removesuffix("_mean"): value
            for name, value in found.items()
            if name.endswith("_mean")
        }

    def _trying(self, action: Callable[[], T]) -> T:
        return algorithms.trying(self._algorithm, action)

    def _train(
        self,
        base: Tensors,
        streams: Streams,
        epochs: int | None,
        purpose: Purpose = "order",
    ) -> Trained:
        """The local training alone; ``purpose`` is that of what it draws."""
        weights = self._checked(base)
        client = streams.client
        indices = examples_for(self._task, client, self._whole)
        seeds = streams.seeds(purpose, 1 + len(self._generators))
        function, execution = self._training
        with execution.loop():
            counts = tf.constant(self._counts(len(indices), epochs))
            values, metrics = function(weights, tf.constant(indices), seeds, counts)
        found = floats(metrics)
        self._check_inputs("dataset", indices, found["loss"])
        return Trained(self._named(values), len(indices), found)

    def evaluate(
        self, weights: Tensors, by_client: bool = True, state: Tensors | None = None
    ) -> tuple[dict[str, float], int]:
        """The loss and the task's metrics on test examples, and how many those are; and, as
        ``validation_…``, on those that decisions are made on, where there are any.

        With ``evaluation.by_client`` also how clients differ; a site has nothing to say of that.
        state: what a client keeps, whose model it then is; None for weights as they were at first.
        Raises: ValueError if ``weights`` do not fit the model.
        """
        values = self._checked(self._whole_of(weights, state))
        function, execution = self._evaluation
        differences = self._by_client if by_client else None
        with execution.loop():
            metrics = floats(function(values, tf.constant(self._test_indices)))
            self._check_inputs("test", self._test_indices, metrics["loss"])
            if differences is not None:
                metrics |= differences.measure(
                    lambda indices: floats(function(values, tf.constant(indices)))
                )
        if by_client and self._validation is not None:
            (function, execution), indices = self._validation
            with execution.loop():
                metrics |= of_validation(floats(function(values, tf.constant(indices))))
        return metrics, len(self._test_indices)

    def _check_inputs(self, part: str, indices: NDArray[np.int32], loss: float) -> None:
        """Raises: UserError where the loss is no number for want of numbers in the inputs."""
        if math.isfinite(loss):
            return
        example = _shared(self._task, part).not_finite(indices)
        if example is not None:
            raise not_finite(self._task, part, example)

    def _counts(self, examples: int, epochs: int | None) -> tuple[int, int]:
        """How many epochs a training of so many examples has, and how many of them the last."""
        training = self._plan.training
        if training.steps is None:
            return training.epochs if epochs is None else epochs, examples
        of_epoch = math.ceil(examples / training.batch_size)
        before = (training.steps - 1) // of_epoch
        last = (training.steps - before * of_epoch) * training.batch_size
        return before + 1, min(last, examples)

    def _steps(self, examples: int, epochs: int | None) -> int:
        """How many steps of the optimizer a training of so many examples has."""
        training = self._plan.training
        return training.steps or math.ceil(examples / training.batch_size) * (
            training.epochs if epochs is None else epochs
        )

    def _named(self, values: list[Any]) -> Tensors:
        """The weights as they travel."""
        arrays: list[Any] = [np.asarray(v) for v in values]
        if self._tables is not None:
            arrays.append(self._tables)
        return dict(zip(self._spec, arrays, strict=True))

    def _checked(self, tensors: Tensors) -> list[Any]:
        known = _bases.find([tensors[name] for name in self._spec if name in tensors])
        if known is not None:
            return known
        if (found := spec(model_groups(tensors))) != self._spec:
            wrong = misfit(found, self._spec, dict(zip(self._spec, self._paths, strict=False)))
            raise ValueError(
                f"these weights do not fit the model of {self._plan.task.name}: {wrong}"
            )
        arrays = [tensors[name] for name in self._spec]
        if self._tables is not None and not np.array_equal(arrays.pop(), self._tables):
            raise UserError(
                "a look-up layer (StringLookup, TextVectorization, Discretization, …) has other "
                "entries here than in the global model: adapt() saw other data; give the layer its "
                "vocabulary or its bins, the same everywhere"
            )
        return _bases.make(arrays)

    @property
    def _paths(self) -> list[str]:
        """The path of each weight, in the order in which they travel."""
        paths = paths_of(self._model)
        return [paths[id(v)] for v in self._weights]

    @cached_property
    def _test_indices(self) -> NDArray[np.int32]:
        return test_indices(self._plan, self._task)

    @cached_property
    def _by_client(self) -> ByClient | None:
        personal = self._travel is not None and self._travel.keeps  # clients measure themselves
        wanted = self._plan.evaluation.by_client and not personal
        return ByClient(self._task, self._test_indices) if wanted else None

    @cached_property
    def _training(self) -> tuple[Any, Execution]:
        with BUILDING:
            examples = self._shared("dataset")
            optimizer = self._optimizer()

            def step(batch: Any, measured: bool, stage: Stage) -> Any:
                return self._step(optimizer, Batch(*examples.take(batch)), measured, stage)

            last = Execution(partial(step, measured=True, stage=self._stages[-1]))
            # Metrics are those of the last epoch: up to a third of a small model's step.
            early = [
                Execution(partial(step, measured=False, stage=stage))
                for stage in self._stages
                if self._plan.training.steps or stage.epochs > (stage is self._stages[-1])
            ]
            seeds = tf.TensorSpec([1 + len(self._generators), 2], tf.int64)
            counts = tf.TensorSpec([2], tf.int32)
            return self._traced(self._train_graph(early, last, optimizer), last, seeds, counts)

    def _optimizer(self) -> Optimizer:
        steered = Steered(self._local_optimizer, self._algorithm, self._context)
        return scaled_for(self._model, steered)

    @cached_property
    def _local_optimizer(self) -> LocalOptimizer:
        with BUILDING:
            return LocalOptimizer(self._plan.training, self._parameters)

    @cached_property
    def _stages(self) -> list[Stage]:
        """Of a turn, one after the other. Raises: UserError where they do not fit the model."""
        epochs = self._plan.training.epochs
        phases = self._trying(lambda: self._algorithm.phases(epochs))
        if phases and self._plan.training.steps:
            raise UserError("the algorithm's phases count epochs: remove training.steps")
        groups = None if self._travel is None else self._travel.groups
        return stages_of(phases, epochs, groups, len(self._parameters))

    def _step(self, optimizer: Optimizer, batch: Batch, measured: bool, stage: Stage) -> Any:
        """The algorithm's loss of a batch, after one step of the optimizer."""
        values = [v.value for v in stage.trained(self._parameters)]
        self._measured = measured
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            loss = self._trying(lambda: self._algorithm.loss(self._model, batch, self._context))
            target = objective(optimizer, loss)
        with stage.untrained_have_no_gradient():
            optimizer.apply(stage.spread(gradients_of(tape, target, values), len(self._parameters)))
        return loss

    def _train_graph(
        self, early: list[Execution], last: Execution, optimizer: Optimizer
    ) -> Callable[..., Any]:
        batch_size, stages = self._plan.training.batch_size, self._stages

        def epoch(
            number: Any, indices: Any, seed: Any, execution: Execution, examples: Any = None
        ) -> Any:
            seed = tf.random.experimental.stateless_fold_in(seed, number)
            order = tf.random.experimental.stateless_shuffle(indices, seed, alg="philox")
            order = order if examples is None else order[:examples]
            whole = self._whole is not None
            return mean_over_batches(execution, order, batch_size, whole, self._stopped)

        def repeated(until: Any, number: Any, indices: Any, seed: Any, execution: Execution) -> Any:
            number, _ = tf.while_loop(
                lambda number, loss: _unless(self._stopped, number < until),
                lambda number, loss: (number + 1, epoch(number, indices, seed, execution)),
                (number, tf.constant(0.0)),
                parallel_iterations=1,
            )
            return number

        def train(weights: list[Any], indices: Any, seeds: Any, counts: Any) -> Any:
            epochs, examples = counts[0], counts[1] if self._plan.training.steps else None
            self._assign(weights)
            forget(self._model)
            for i, generator in enumerate(self._generators):
                generator.assign(tf.cast(seeds[i + 1], generator.dtype))
            optimizer.reset()
            self._context.begin()
            number, until = tf.constant(0), 0
            for i, stage in enumerate(stages):
                held, is_last = stage.held(self._weights), stage is stages[-1]
                until = epochs - 1 if is_last else until + stage.epochs
                if i < len(early):
                    number = repeated(until, number, indices, seeds[0], early[i])
                if is_last:
                    self._model.reset_metrics()
                    loss = epoch(number, indices, seeds[0], last, examples)
                for variable, value in held:
                    variable.assign(value)
            optimizer.finish()
            return [tf.identity(v.value) for v in self._weights], self._results(loss)

        return train

    @cached_property
    def _evaluation(self) -> tuple[Any, Execution]:
        return self._measuring("test")

    @cached_property
    def _validation(self) -> tuple[tuple[Any, Execution], NDArray[np.int32]] | None:
        part = self._task.decided_on
        return None if part is None else (self._measuring(part[0]), part[1])

    def _measuring(self, part: str) -> tuple[Any, Execution]:
        with BUILDING:
            examples = self._shared(part)

            def step(batch: Any) -> Any:
                return self._loss(Batch(*examples.take(batch)), training=False)

            execution = Execution(step)
            size, whole = self._whole or _EVALUATION_BATCH, self._whole is not None

            def evaluate(weights: list[Any], indices: Any) -> Any:
                self._assign(weights)
                forget(self._model)
                self._model.reset_metrics()
                return self._results(mean_over_batches(execution, indices, size, whole))

            return self._traced(evaluate, execution)

    def _traced(
        self, graph: Callable[..., Any], execution: Execution, *inputs: Any
    ) -> tuple[Any, Execution]:
        weights = [tf.TensorSpec(v.shape, v.dtype) for v in self._weights]
        indices = tf.TensorSpec([None], tf.int32)
        with execution.loop():
            function = tf.function(graph, autograph=False)
            return function.get_concrete_function(weights, indices, *inputs), execution

    def _shared_examples(self, part: str) -> Batches:
        return _shared(self._task, part)

    def _shared(self, part: str) -> Batches:
        examples = self._shared_examples(part)
        # Metrics make their variables with the first batch, which must not be in a graph.
        x, y = examples.first(self._whole or 1)
        self._model.compute_metrics(None, y, self._model(self._task.preprocess(x)))
        return examples

    def _assign(self, weights: list[Any]) -> None:
        for variable, value in zip(self._weights, weights, strict=True):
            variable.assign(value)

    def _loss(self, batch: Batch, training: bool) -> Any:
        """The task's loss of a batch, counted in the metrics."""
        self._measured = True
        predicted = self._model(self._task.preprocess(batch.x), training=training)
        return self._loss_of(batch, predicted, training)

    def _loss_of(self, batch: Batch, predicted: Any, training: bool = True) -> Any:
        """The task's loss of what was predicted, regularisation included."""
        x, y, weight = batch
        loss = self._model.compute_loss(x, y, predicted, weight, training=training)
        if self._measured:
            self._model.compute_metrics(x, y, predicted)
        return loss

    def _gradient_at(self, base: Tensors, streams: Streams) -> list[Array]:
        """The gradient of the mean loss over a client's examples, at these weights; layers such as
        dropout and batch normalisation are as in training.
        """
        indices = self._task.client_indices(streams.client)
        seeds = streams.seeds("gradient", len(self._generators))
        function, execution = self._full_gradient
        with execution.loop():
            sums = function(self._checked(base), tf.constant(indices), seeds)
        return [s.numpy() for s in sums]

    @cached_property
    def _full_gradient(self) -> tuple[Any, Execution]:
        with BUILDING:
            examples = self._shared("dataset")
            values = [v.value for v in self._parameters]
            sums = [tf.Variable(tf.zeros(v.shape, v.dtype), trainable=False) for v in values]

            def step(batch: Any) -> Any:
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(values)
                    loss = self._loss(Batch(*examples.take(batch)), training=True)
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

    def _results(self, loss: Any) -> dict[str, Any]:
        return {**self._model.get_metrics_result(), "loss": loss}


def mean_over_batches(
    execution: Execution,
    indices: Any,
    batch_size: int,
    whole: bool = False,
    stopped: tf.Variable | None = None,
) -> Any:
    """The mean of the steps' losses over examples. The last batch has what is left, which
    ``whole`` leaves out where it is none. There are no more once ``stopped`` is true."""
    batch_size = min(batch_size, _MOST)
    total = tf.size(indices)
    if whole:
        total -= total % batch_size

    def body(start: Any, loss: Any) -> tuple[Any, Any]:
        end = tf.minimum(start + batch_size, total)
        step = tf.cast(execution.step(indices[start:end]), tf.float32)
        return end, loss + step * tf.cast(end - start, tf.float32)

    _, loss = tf.while_loop(
        lambda start, loss: _unless(stopped, start < total),
        body,
        (0, tf.constant(0.0)),
        parallel_iterations=1,
    )
    return loss / tf.cast(total, tf.float32)


def _unless(stopped: tf.Variable | None, more: Any) -> Any:
    """Whether a loop goes on, which would do so by itself while there is ``more``."""
    return more if stopped is None else tf.logical_and(more, tf.logical_not(stopped))


def _shared(task: Task, part: str) -> Batches:
    """The task's examples as tensors, made once for all trainers of the process."""
    with BUILDING:
        made = _tensors.setdefault(task, {})
        if part not in made:
            made[part] = Batches(task, part)
        return made[part]
