"""Trainings on JAX: clients of one base and one shape are lanes of one compiled program.

A client's values are a function of (base, seed, client, turn, epochs) and of how many lanes its
program has; who the others are changes nothing that it computes with. The same values as
TensorFlow's within what float32 rounds, where the order of examples and dropout play no part: these
are drawn by other generators.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fluffle.schemas import Plan, Tensors, UserError
from fluffle.schemas.tensors import misfit, model_groups, spec
from fluffle.worker.tasks.by_client import ByClient
from fluffle.worker.tasks.losses import compile_model
from fluffle.worker.tasks.registry import load_task
from fluffle.worker.tasks.structure import leaves, mapped
from fluffle.worker.tasks.task import Task, examples_of
from fluffle.worker.tasks.weighting import weights_of
from fluffle.worker.training.building import (
    BUILDING,
    examples_for,
    floats,
    not_finite,
    of_validation,
    seeded,
    test_indices,
)
from fluffle.worker.training.keras_optimizers import of_keras
from fluffle.worker.training.lanes.layout import Layout, Shape, layout, shape_of
from fluffle.worker.training.lanes.program import Program
from fluffle.worker.training.lanes.support import (
    check_plan,
    check_supported,
    check_task,
    decides_alone,
)
from fluffle.worker.training.local_state import fixed_batch, read_statistics, recurrent_states
from fluffle.worker.training.seeds import Streams
from fluffle.worker.training.trained import Job, Trained
from fluffle.worker.training.travel import Travel, check_travels
from fluffle.worker.training.trial import check_model
from fluffle.worker.training.variables import generators_of, parameters_of, payload, values_of

#: Examples per step of an evaluation.
_EVALUATION_BATCH = 250

Indices = NDArray[np.int32]


class JaxTrainer:
    """Trains and evaluates one plan's model. A process has one: threads share what is compiled."""

    def __init__(self, plan: Plan) -> None:
        """Raises: UserError for what this engine does not do."""
        check_plan(plan)
        self._plan = plan
        self._task = task = load_task(plan)
        check_task(task)
        with seeded(plan.seed):
            self._model = model = task.model()
        self._travel = None if plan.weights is None else Travel(plan.weights, model)
        check_model(model)
        check_supported(model)
        check_travels(model, self._travel)
        compile_model(task, model, weighted=True)
        read_statistics(model)
        self._parameters, values = parameters_of(model), values_of(model)
        self._generators, carried = generators_of(model), recurrent_states(model)
        self._values = len(values)
        self._others = [*values, *self._generators, *carried]
        self._carried = [np.zeros(v.shape, v.dtype) for v in carried]
        self._spec = spec(payload(model))
        #: How many examples the model takes at once, where it takes no other number.
        self._whole = fixed_batch(model, plan.training.batch_size)
        self._padded = self._whole is None and decides_alone(model)
        self._lanes = plan.training.lanes or 1
        self._compiled: dict[tuple[Any, ...], _Traced] = {}
        self._parts: dict[str, Any] = {}

    def initial(self) -> Tensors:
        """The weights of version 0: a function of the plan's seed alone."""
        if self._travel is not None:
            return self._travel.initial()
        with seeded(self._plan.seed):
            return payload(self._task.model())

    # ---- training

    @property
    def lanes(self) -> int:
        """How many trainings it does together at most."""
        return self._lanes

    def shape(self, client: str, epochs: int | None) -> Shape:
        """Trainings of one shape can share a program. Raises: ValueError if there is no client."""
        return self._shape(len(self._task.client_indices(client)), epochs)

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
        """As ``Trainer.train``; a program that runs is not stopped."""
        job = Job(client, turn, epochs, version)
        (trained,) = self.train_many(base, [job], [state])
        if isinstance(trained, UserError):
            raise trained
        return trained

    def train_many(
        self,
        base: Tensors,
        jobs: Sequence[Job],
        states: Sequence[Tensors | None],
        lanes: int | None = None,
    ) -> list[Trained | UserError]:
        """Trainings of one shape, no more than there are lanes, all from the same base.

        lanes: of the program, for who cannot know how many will come; by default what they take.
        An error stands in the place of the training that it is about alone.
        Raises: ValueError where ``base`` does not fit, or a client has no examples; UserError.
        """
        started = time.perf_counter()
        indices = [examples_for(self._task, job.client, self._whole) for job in jobs]
        if self._shares:
            wholes = [self._whole_of(base)] * len(jobs)
        else:
            wholes = [self._whole_of(base, state) for state in states]
        shape = self._shape(len(indices[0]), jobs[0].epochs)
        lanes = lanes or self._width(len(jobs))
        padding = [0] * (lanes - len(jobs))  # lanes over are copies of the first
        drawn = [self._draw(job, mine, shape) for job, mine in zip(jobs, indices, strict=True)]
        drawn += [drawn[i] for i in padding]
        rows = [*wholes, *(wholes[i] for i in padding)]
        weights, values = self._split(rows)
        seeds = [np.stack(found) for found in zip(*(seeds for _, seeds in drawn), strict=True)]
        carried = [np.broadcast_to(zero, (lanes, *zero.shape)) for zero in self._carried]
        layouts = [found for found, _ in drawn]
        program = self._once((shape, lanes), self._program.training, shape, self._shares)
        found = program(
            weights,
            [*values, *seeds, *carried],
            np.stack([one.indices for one in layouts]),
            np.stack([one.counts for one in layouts]),
            np.stack([one.rest for one in layouts]),
            np.stack([self._rates(jobs[0].version, shape)] * lanes),
            self._on_device("dataset"),
        )
        trained, others, metrics = jax.device_get(found)
        seconds = (time.perf_counter() - started) / len(jobs)
        results: list[Trained | UserError] = []
        for i, mine in enumerate(indices):
            measured = {name: value[i] for name, value in metrics.items()}
            values = [a[i] for a in others[: self._values]]
            try:
                results.append(
                    self._trained([a[i] for a in trained], values, measured, mine, seconds)
                )
            except UserError as error:
                results.append(error)
        return results

    def trace(self) -> dict[str, Any]:
        """Go through a training without computing anything; its metrics, shapes in place of values.

        Raises: what the task or Keras does.
        """
        mine = self._task.client_indices("0")
        shape = self._shape(len(mine), None)
        rows, seeds = self._draw(Job("0", 0), mine, shape)
        weights, values = self._split([self._whole_of(self.initial())])
        program = self._program.training(shape, self._shares)
        inputs = [rows.indices, rows.counts, rows.rest, self._rates(0, shape)]
        _, _, metrics = jax.eval_shape(
            *(program, weights, [*values, *(a[None] for a in (*seeds, *self._carried))]),
            *(a[None] for a in inputs),
            self._on_device("dataset"),
        )
        return {name: np.zeros(value.shape[1:]) for name, value in metrics.items()}

    def _trained(
        self, weights: list[Any], values: list[Any], metrics: Any, mine: Indices, seconds: float
    ) -> Trained:
        named = dict(zip(self._spec, [*weights, *values], strict=True))
        measured = floats(metrics)
        self._check_inputs("dataset", mine, measured["loss"])
        if self._travel is None:
            return Trained(named, len(mine), measured, seconds)
        personal = self._travel.personal(named)
        return Trained(self._travel.outward(named), len(mine), measured, seconds, state=personal)

    def _shape(self, examples: int, epochs: int | None) -> Shape:
        table = self._plan.training
        size = min(table.batch_size, 2**30)
        if self._whole is not None:
            examples -= examples % self._whole
        return shape_of(examples, epochs or table.epochs, size, self._padded)

    def _draw(self, job: Job, mine: Indices, shape: Shape) -> tuple[Layout, list[Any]]:
        """The order of its examples, and the seeds of the model's generators."""
        streams = Streams(self._plan.seed, job.client, job.turn, job.version)
        seeds = streams.seeds("order", 1 + len(self._generators))
        bits = seeds.astype(np.uint32)
        rng = np.random.default_rng(bits[0])
        if self._whole is not None:  # those that fill no batch are left out, others in each turn
            mine = rng.permutation(mine)[: len(mine) - len(mine) % self._whole]
        own = [a.astype(v.dtype) for a, v in zip(bits[1:], self._generators, strict=True)]
        return layout(mine, shape, rng), own

    def _rates(self, version: int, shape: Shape) -> NDArray[np.float32]:
        """The learning rate of each step, shape (epochs, steps of an epoch)."""
        table, steps = self._plan.training, shape.rows + (1 if shape.rest else 0)
        rate = table.learning_rate
        if table.version_schedule is not None:
            rate *= table.version_schedule.at(version)
        of_step = np.ones(shape.epochs * steps)
        if table.local_schedule is not None:
            of_step = np.array([table.local_schedule.at(t) for t in range(len(of_step))])
        return (rate * of_step).astype(np.float32).reshape(shape.epochs, steps)

    def _width(self, jobs: int) -> int:
        """Lanes of the program that so many jobs take: the next power of two, for few programs."""
        return min(self._lanes, 1 << (jobs - 1).bit_length())

    def _split(self, wholes: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
        """(parameters as the program takes them, values by lane)."""
        names = [*self._spec]
        cut = len(self._parameters)
        weights = [
            wholes[0][name] if self._shares else np.stack([whole[name] for whole in wholes])
            for name in names[:cut]
        ]
        values = [np.stack([whole[name] for whole in wholes]) for name in names[cut:]]
        return weights, values

    @property
    def _shares(self) -> bool:
        """Whether all clients begin with the same weights."""
        return self._travel is None or not self._travel.keeps

    def _whole_of(self, base: Tensors, state: Tensors | None = None) -> Tensors:
        """The whole model in its order. Raises: ValueError."""
        whole = base if self._travel is None else self._travel.inward(base, state)
        if wrong := misfit(spec(model_groups(whole)), self._spec):
            raise ValueError(
                f"these weights do not fit the model of {self._plan.task.name}: {wrong}"
            )
        return whole

    # ---- evaluation

    def evaluate(
        self, weights: Tensors, by_client: bool = True, state: Tensors | None = None
    ) -> tuple[dict[str, float], int]:
        """As ``Trainer.evaluate``."""
        whole = self._whole_of(weights, state)
        metrics = self._measure(whole, "test", self._test_indices)
        self._check_inputs("test", self._test_indices, metrics["loss"])
        if by_client and self._plan.evaluation.by_client:
            metrics |= self._by_client.measure(lambda mine: self._measure(whole, "test", mine))
        if by_client and self._task.decided_on is not None:
            metrics |= of_validation(self._measure(whole, *self._task.decided_on))
        return metrics, len(self._test_indices)

    def _measure(self, whole: Tensors, part: str, indices: Indices) -> dict[str, float]:
        size = self._whole or _EVALUATION_BATCH
        count = len(indices) - (len(indices) % size if self._whole else 0)
        shape = shape_of(count, 1, size, self._padded)
        rows = layout(indices[:count], shape, np.random.default_rng(0))
        arrays, cut = [whole[name] for name in self._spec], len(self._parameters)
        seeds = [np.asarray(v.value) for v in self._generators]
        others = [*arrays[cut:], *seeds, *self._carried]
        run = self._once((shape, part), self._program.evaluation, shape)
        data = self._on_device(part)
        found = run(arrays[:cut], others, rows.indices, rows.counts, rows.rest, data)
        return floats(jax.device_get(found))

    @cached_property
    def _test_indices(self) -> Indices:
        return test_indices(self._plan, self._task)

    @cached_property
    def _by_client(self) -> ByClient:
        return ByClient(self._task, self._test_indices)

    def _check_inputs(self, part: str, indices: Indices, loss: float) -> None:
        """Raises: UserError where the loss is no number for want of numbers in the inputs."""
        if math.isfinite(loss):
            return
        for array in leaves(self._on_device(part)[0]):
            taken = np.asarray(array[indices])
            if taken.dtype.kind != "f":
                continue
            wrong = ~np.isfinite(taken.reshape(len(taken), -1)).all(axis=1)
            if wrong.any():
                raise not_finite(self._task, part, int(indices[wrong.argmax()]))

    # ---- what is compiled, once for all threads

    def _on_device(self, part: str) -> Any:
        """(x, y, weights of examples or None) as arrays of the device."""
        if part not in self._parts:
            with BUILDING:
                self._parts[part] = self._parts.get(part) or _on_device(self._task, part)
        return self._parts[part]

    @cached_property
    def _program(self) -> Program:
        with BUILDING:
            data = self._on_device("dataset")
            x, y = (mapped(lambda a: a[: self._whole or 1], part) for part in data[:2])
            # Losses and metrics make their variables with the first batch: not while it is traced.
            predicted = self._model(self._task.preprocess(x))
            self._model.compute_loss(x, y, predicted, training=False)
            self._model.compute_metrics(x, y, predicted)
            optimizer = of_keras(self._plan.training)
            optimizer.build(self._parameters)
            return Program(
                self._model,
                self._parameters,
                self._others,
                optimizer,
                self._task.preprocess,
                self._plan.training.proximal_mu or 0.0,
            )

    def _once(
        self, key: tuple[Any, ...], make: Callable[..., Callable[..., Any]], *how: Any
    ) -> _Traced:
        """What ``make(*how)`` gives, the same for all who ask by this key."""
        if key not in self._compiled:
            self._compiled.setdefault(key, _Traced(make(*how)))
        return self._compiled[key]


class _Traced:
    """A jitted function that one thread traces while the others wait."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._ready = False

    def __call__(self, *inputs: Any) -> Any:
        if self._ready:
            return self._function(*inputs)
        with BUILDING:
            found = self._function(*inputs)
            self._ready = True
        return found


def _on_device(task: Task, part: str) -> Any:
    examples = examples_of(task, part)
    weights = weights_of(task, examples) if part == "dataset" else None
    x, y = (mapped(jnp.asarray, one) for one in examples)
    return x, y, None if weights is None else jnp.asarray(weights)
