"""A task's loss and metrics, which are Keras's own; whether a batch goes through its model.

Mistakes are found here, before a run begins: in the name of a loss, in the shape of a target.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from fluffle.schemas import UserError

if TYPE_CHECKING:
    import keras

    from fluffle.worker.tasks.task import Task

#: Metrics that Keras's ``compile`` knows by a short name, and makes to fit the loss.
_SHORT = ("accuracy", "acc", "crossentropy", "ce")
#: What ``accuracy`` stands for: it is called so however a task asks for it.
_ACCURACIES = ("acc", "sparse_categorical_accuracy", "categorical_accuracy", "binary_accuracy")
_BATCH = 2


def compile_model(task: Task, model: keras.Model, optimizer: Any = None) -> None:
    """Give the model the task's loss and metrics. Raises: UserError where Keras has no such."""
    import keras

    metrics = task.metrics
    if metrics is None:
        metrics = ("accuracy",) if _classifies(task.loss) else ()
    if isinstance(metrics, str) or not hasattr(metrics, "__iter__"):
        metrics = (metrics,)
    loss = _known(task.loss, "loss", keras.losses.get, keras.losses)
    model.compile(optimizer=optimizer, loss=loss, metrics=[_metric(metric) for metric in metrics])


def named_accuracy(metrics: dict[str, float]) -> dict[str, float]:
    """The same, with the one metric that is an accuracy called so."""
    found = [name for name in metrics if name in _ACCURACIES]
    if "accuracy" in metrics or len(found) != 1:
        return metrics
    return {"accuracy" if name in found else name: value for name, value in metrics.items()}


def try_out(task: Task) -> None:
    """A batch of two examples through the model, its loss and its metrics. Raises: UserError."""
    import keras
    import numpy as np
    import tensorflow as tf

    model = task.model()
    if not isinstance(model, keras.Model):
        raise UserError(f"model() gave {_kind(model)}: it has to give a keras.Model")
    if not model.built:
        raise UserError("model() gave a model without weights: let it begin with keras.Input(…)")
    compile_model(task, model)
    for name, examples in (("dataset", task.dataset()), ("test", task.test())):
        if not (hasattr(examples, "x") and hasattr(examples, "y")):
            raise UserError(f"{name}() gave {_kind(examples)}: let it give Examples(x, y)")
        if len(examples.x) != len(examples.y):
            raise UserError(f"{name}(): {len(examples.x)} examples in x and {len(examples.y)} in y")
        if not len(examples.y):
            raise UserError(f"{name}() gave no examples")
        x, y = (tf.constant(np.asarray(part[:_BATCH])) for part in (examples.x, examples.y))
        predicted = model(task.preprocess(x), training=False)
        try:
            model.compute_loss(x, y, predicted, training=False)
            model.compute_metrics(x, y, predicted)
        except Exception as error:
            raise UserError(
                f"{name}(): loss or metrics do not fit. The model gives {predicted.dtype.name}"
                f"{list(predicted.shape[1:])} for an example, y has {y.dtype.name}"
                f"{list(y.shape[1:])}: {' '.join(str(error).split())[:300]}"
            ) from error


def _metric(metric: Any) -> Any:
    """A metric of our own: each object keeps its counts in variables, and each trainer has one."""
    import keras

    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    if metric in _SHORT:
        return metric
    return _known(metric, "metric", keras.metrics.get, keras.metrics)


def _known(what: Any, kind: str, get: Any, module: Any) -> Any:
    """The same, where Keras has what goes by this name, or it is an object. Raises: UserError."""
    if not isinstance(what, str):
        return what
    try:
        get(what)
    except ValueError:
        near = difflib.get_close_matches(what, [*vars(module), *_SHORT], 1)
        meant = f"did you mean {near[0]!r}?" if near else "https://keras.io/api has them all"
        raise UserError(f"Keras has no {kind} {what!r}: {meant}") from None
    return what


def _classifies(loss: Any) -> bool:
    name = getattr(loss, "name", None) or getattr(loss, "__name__", None) or str(loss)
    return "crossentropy" in name.lower().replace("_", "")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
