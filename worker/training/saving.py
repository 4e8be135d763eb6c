"""The global model as a Keras model, for whoever wants to use it.

What a task's ``preprocess`` does to inputs is code, and no part of the Keras model: ``.keras``
takes inputs that have been preprocessed, a SavedModel raw ones.
"""

from __future__ import annotations

from pathlib import Path

import keras
import tensorflow as tf

from fluffle.schemas import Plan, Tensors
from fluffle.schemas.tensors import spec
from fluffle.worker.tasks.losses import compile_model
from fluffle.worker.tasks.registry import load_task
from fluffle.worker.tasks.task import Task
from fluffle.worker.training import optimizers
from fluffle.worker.training.trainer import BUILDING, payload


def keras_model(plan: Plan, weights: Tensors) -> keras.Model:
    """The task's model with these weights, compiled with its loss and metrics.

    Its optimizer is the clients'. Raises: ValueError if ``weights`` do not fit; UserError.
    """
    task = load_task(plan)
    with BUILDING:
        model = task.model()
    variables = [*model.trainable_weights, *model.non_trainable_weights]
    if spec(payload(model)) != spec(weights):
        raise ValueError(f"these weights do not fit the model of {plan.task.name}")
    for variable, value in zip(variables, weights.values(), strict=True):
        variable.assign(value)
    optimizer = optimizers.of_keras(plan.training)
    optimizer.build(model.trainable_variables)  # else Keras warns whoever loads the file
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


def _input_of(task: Task) -> tf.TensorSpec:
    x = tf.convert_to_tensor(task.test().x[:1])
    return tf.TensorSpec([None, *x.shape[1:]], x.dtype)
