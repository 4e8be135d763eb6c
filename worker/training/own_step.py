"""Training by a model's own ``train_step``: Keras calls it, batch by batch, outside one graph.

So it is slower than the compiled loop, by what a call costs: about a millisecond a step. All else
is the trainer's: the order of examples, seeds, weights as they travel. A model that is compiled in
``model()`` keeps its optimizers, however many; else it gets the plan's. Their state starts anew
with each turn. A ``test_step`` of its own is honoured in evaluations alike.
"""

from __future__ import annotations

import logging
from functools import cache, cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fluffle.schemas import Plan, Tensors, UserError
from fluffle.worker.tasks.losses import compile_model
from fluffle.worker.tasks.task import StreamedTask
from fluffle.worker.training.batches import Batches
from fluffle.worker.training.building import BUILDING, floats, of_validation
from fluffle.worker.training.keras_optimizers import of_keras
from fluffle.worker.training.local_state import forget
from fluffle.worker.training.seeds import Purpose, Streams
from fluffle.worker.training.trained import Trained
from fluffle.worker.training.trainer import Trainer
from fluffle.worker.training.variables import has_own

_log = logging.getLogger(__name__)
_EVALUATION_BATCH = 250


class OwnStepTrainer(Trainer):
    """Trains and evaluates a model with a ``train_step`` or ``test_step`` of its own."""

    def __init__(self, plan: Plan) -> None:
        """Raises: UserError where something else of the plan wants to be in the training."""
        super().__init__(plan)
        self._steps_itself = has_own(self._model, "train_step")
        if isinstance(self._task, StreamedTask):
            raise UserError("a model's own train_step() takes no StreamedTask")
        if self._steps_itself:
            what = plan.training.algorithm or ("the strategy" if plan.asks else None)
            if what or plan.training.proximal_mu:
                raise UserError(
                    f"{what or 'proximal_mu'} changes the gradients, and the model's own "
                    "train_step() makes its own: choose one of them"
                )
            for key in ("steps", "optimizer_state", "local_schedule", "version_schedule"):
                if getattr(plan.training, key) not in (None, "reset"):
                    raise UserError(f"training.{key} is not for a model's own train_step()")
            _say_once(type(self._model).__name__)

    def evaluate(
        self, weights: Tensors, by_client: bool = True, state: Tensors | None = None
    ) -> tuple[dict[str, float], int]:
        """As ``Trainer.evaluate``."""
        if not has_own(self._model, "test_step"):
            return super().evaluate(weights, by_client, state)
        values, examples = (
            self._checked(self._whole_of(weights, state)),
            self._shared_examples("test"),
        )
        size = self._whole or _EVALUATION_BATCH

        def measure(indices: Any, examples: Batches = examples) -> dict[str, float]:
            self._assign(values)
            forget(self._model)
            self._model.reset_metrics()
            logs: dict[str, Any] = {}
            for batch in _batches(indices, size, self._whole is not None):
                logs = self._test_step(self._data(examples.take(batch)))
            return floats(logs)

        metrics = measure(self._test_indices)
        if by_client and self._by_client is not None:
            metrics |= self._by_client.measure(measure)
        part = self._task.decided_on if by_client else None
        if part is not None:
            metrics |= of_validation(measure(part[1], self._shared_examples(part[0])))
        return metrics, len(self._test_indices)

    def _train(
        self,
        base: Tensors,
        streams: Streams,
        epochs: int | None,
        purpose: Purpose = "order",
    ) -> Trained:
        if not self._steps_itself:
            return super()._train(base, streams, epochs, purpose)
        client = streams.client
        weights, indices = self._checked(base), self._task.client_indices(client)
        if len(indices) < (self._whole or 1):
            raise ValueError(f"client {client} has too few examples")
        seeds = streams.seeds(purpose, 1 + len(self._generators))
        self._reset_optimizers()
        self._assign(weights)
        forget(self._model)
        for i, generator in enumerate(self._generators):
            generator.assign(tf.cast(seeds[i + 1], generator.dtype))
        examples, logs = self._shared_examples("dataset"), dict[str, Any]()
        for number in range(self._plan.training.epochs if epochs is None else epochs):
            seed = tf.random.experimental.stateless_fold_in(tf.constant(seeds[0]), number)
            order = tf.random.experimental.stateless_shuffle(indices, seed, alg="philox")
            self._model.reset_metrics()
            size = self._plan.training.batch_size
            for batch in _batches(order, size, self._whole is not None):
                logs = self._train_step(self._data(examples.take(batch)))
        return Trained(self._named([v.value for v in self._weights]), len(indices), floats(logs))

    def _data(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """A batch as ``fit`` hands it to a step."""
        x, *others = batch
        return (self._task.preprocess(x), *others)

    @cached_property
    def _train_step(self) -> Any:
        return tf.function(self._model.train_step, autograph=False, reduce_retracing=True)

    @cached_property
    def _test_step(self) -> Any:
        return tf.function(self._model.test_step, autograph=False, reduce_retracing=True)

    def _compile(self) -> None:
        """A model that comes compiled stays so."""
        if not self._model.compiled:
            compile_model(self._task, self._model, of_keras(self._plan.training))
            self._model.jit_compile = False  # on a CPU it takes longer than it saves

    def _reset_optimizers(self) -> None:
        for variables, values in self._optimizer_state:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    @cached_property
    def _optimizer_state(self) -> list[tuple[list[Any], list[Any]]]:
        """Of each of the model's optimizers: its variables, and the values that they begin with."""
        with BUILDING:
            first = self._shared_examples("dataset").take(tf.range(self._whole or 1))
            self._model.train_step(self._data(first))  # makes what is made with the first step
            found = []
            for optimizer in optimizers_of(self._model):
                fresh = type(optimizer).from_config(optimizer.get_config())
                fresh.build(optimizer._trainable_variables)
                values = [np.asarray(v.value) for v in fresh.variables]
                found.append((list(optimizer.variables), values))
            return found


def optimizers_of(model: keras.Model) -> list[Any]:
    """The optimizers that a model holds, by ``compile`` or as attributes."""
    held = [*vars(model).values(), getattr(model, "optimizer", None)]
    unique = {id(o): o for o in held if isinstance(o, keras.optimizers.Optimizer)}
    return [o for o in unique.values() if o.built]


def _batches(indices: Any, size: int, whole: bool) -> list[Any]:
    batches = [indices[i : i + size] for i in range(0, len(indices), size)]
    return [batch for batch in batches if len(batch) == size] if whole else batches


@cache
def _say_once(name: str) -> None:
    _log.warning(
        "%s.train_step() is called batch by batch, which is slower than our own loop", name
    )
