"""The global model as a Keras model, for whoever wants to use it.

What a task's ``preprocess`` does to inputs is code, and no part of the Keras model: ``.keras``
takes inputs that have been preprocessed, a SavedModel raw ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

from fluffle.schemas import Plan, Tensors, UserError
from fluffle.schemas.tensors import spec
from fluffle.worker.tasks.losses import compile_model
from fluffle.worker.tasks.registry import load_task
from fluffle.worker.tasks.structure import mapped
from fluffle.worker.tasks.task import Task, examples_of
from fluffle.worker.training.algorithms.registry import algorithm_of
from fluffle.worker.training.building import seeded
from fluffle.worker.training.keras_optimizers import of_keras
from fluffle.worker.training.local_state import use_statistics
from fluffle.worker.training.travel import Travel
from fluffle.worker.training.variables import has_own, parameters_of, payload, tables_of, values_of


def keras_model(plan: Plan, weights: Tensors, state: Tensors | None = None) -> keras.Model:
    """The task's model with these weights, compiled with its loss and metrics.

    state: what a client keeps, where weights are personal. The optimizer is the clients'.
    Raises: ValueError if ``weights`` do not fit; UserError.
    """
    task = load_task(plan)
    with seeded(plan.seed):  # as every trainer: what is drawn and is no weight, too
        model = task.model()
    keeps = False
    if plan.weights is not None:
        travel = Travel(plan.weights, model)
        weights, keeps = travel.inward(weights, state), travel.keeps
    if state is not None:
        own = algorithm_of(plan).personal_model(state)
        if not own and not keeps:
            raise UserError(
                "the clients of this run keep no model of their own: that is what [weights] keep, "
                "or training.algorithm = 'ditto', is for"
            )
        weights = own or weights
    variables = [*parameters_of(model), *values_of(model)]
    if spec(payload(model)) != spec(weights):
        raise ValueError(f"these weights do not fit the model of {plan.task.name}")
    tables = tables_of(model)
    if tables is not None and not np.array_equal(tables, [*weights.values()][-1]):
        raise ValueError(f"the look-up layers of {plan.task.name} have other entries here")
    for variable, value in zip(variables, weights.values(), strict=False):
        variable.assign(value)
    use_statistics(model)
    if model.compiled and has_own(model, "train_step"):  # with optimizers of its own
        return model
    optimizer = of_keras(plan.training)
    optimizer.build(parameters_of(model))  # else Keras warns whoever loads the file
    compile_model(task, model, optimizer)
    return model


def save(model: keras.Model, plan: Plan, path: Path) -> None:
    """Write it: a file that ends in ``.keras``, or a folder that is a TensorFlow SavedModel.

    The latter's endpoint ``serve`` takes inputs as ``Task.test`` has them.
    """
    if path.suffix == ".keras":
        temporary = path.with_name(f".{path.name}.partial.keras")
        model.save(temporary)
        temporary.replace(path)
        return
    task = load_task(plan)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", _serving(model, task), [_input_of(task)])
    archive.write_out(str(path), verbose=False)


def _serving(model: keras.Model, task: Task):  # type: ignore[no-untyped-def]
    return lambda x: model(task.preprocess(x), training=False)


def _input_of(task: Task) -> Any:
    import tensorflow as tf

    def spec_of(array: Any) -> tf.TensorSpec:
        x = tf.convert_to_tensor(array[:1])
        return tf.TensorSpec([None, *x.shape[1:]], x.dtype)

    return mapped(spec_of, examples_of(task, "test").x)
