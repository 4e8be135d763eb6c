"""A trial of a task before a run begins: one batch of two through its model, loss and metrics.

What cannot be trained, or would be passed over in silence, is refused here in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from fluffle.schemas import Experiment, Plan, UserError, user_code
from fluffle.schemas.errors import printable
from fluffle.schemas.experiment import WeightsTable
from fluffle.schemas.messages import MOST_METRICS
from fluffle.schemas.tensors import spec
from fluffle.worker.tasks import custom
from fluffle.worker.tasks.arrays import ArrayTask
from fluffle.worker.tasks.by_client import ByClient
from fluffle.worker.tasks.losses import compile_model, named_accuracy
from fluffle.worker.tasks.registry import TASKS, task_of, trying
from fluffle.worker.tasks.structure import count_of, is_structured, mapped, named_leaves
from fluffle.worker.tasks.task import Examples, StreamedTask, Task, examples_of
from fluffle.worker.training.arrays import NO_STRAGGLERS, numbers, travelling
from fluffle.worker.training.message_size import check_fits

if TYPE_CHECKING:
    import keras

_BATCH = 2
#: Optimizers that take nothing but what has a key of its own.
_FUSED = ("sgd", "adam")
#: Metrics of clients, which an evaluation may add.
_BY_CLIENT = 8

#: Tasks of this process that have been tried.
_tried: WeakSet[Task] = WeakSet()


def check(experiment: Experiment) -> None:
    """Raises: UserError if the experiment's task cannot be trained, or split, as it says."""
    table = experiment.task
    task = task_of(table, experiment.partition, experiment.experiment.seed)
    on_jax = experiment.training.engine == "jax"
    if on_jax:
        trying(task, lambda: _trace(task, experiment))
    if isinstance(task, ArrayTask):
        _try_out_arrays(task, experiment)
        return
    training = experiment.training
    if training.optimizer_parameters is not None or training.optimizer.lower() not in _FUSED:
        from fluffle.worker.training.keras_optimizers import of_keras

        of_keras(training)
    if experiment.weights is not None:
        groups = experiment.weights
        trying(task, lambda: _try_out_groups(task, groups))
    if training.algorithm is not None and not on_jax:
        trying(task, lambda: _try_out_phases(task, experiment))
    if custom.is_custom(table.name) and not on_jax:
        wants_accuracy = experiment.experiment.target_accuracy is not None
        by_client = bool(experiment.evaluation.by_client)
        fits = partial(_check_fits, experiment=experiment)
        trying(task, lambda: try_out(task, wants_accuracy, by_client, fits=fits))
        _tried.add(task)
    if table.clients:
        trying(task, lambda: task.client_indices("0"))
    if experiment.evaluation.by_client:
        total = count_of(examples_of(task, "test").y)
        trying(task, lambda: ByClient(task, np.arange(total, dtype=np.int32)))


def _trace(task: Task, experiment: Experiment) -> None:
    """The trial on the JAX engine. Raises: UserError; and what the task raises."""
    from fluffle.worker.training.per_plan import make_trainer

    trainer: Any = make_trainer(Plan.of(experiment, "delta"))
    model = _model_of(task)
    for part in ("dataset", "test"):
        examples = examples_of(task, part)
        _check_lengths(part, examples)
        _check_outputs(part, model, examples)
        _check_labels(task, part, examples, model)
    if experiment.task.clients:
        wants_accuracy = experiment.experiment.target_accuracy is not None
        _check_metrics(trainer.trace(), wants_accuracy, bool(experiment.evaluation.by_client))


def untried(task: Task) -> bool:
    """Whether it is one from a file, all in memory, that this process has not tried."""
    ours = type(task) in TASKS.values() or isinstance(task, ArrayTask | StreamedTask)
    return not ours and task not in _tried


def try_once(task: Task) -> None:
    """The trial of a task from a file at whoever trains it: its training alone, once a process.

    Where ``check`` has tried it, and for tasks of ours, nothing is done. Raises: UserError, and
    what the task raises.
    """
    if untried(task):
        try_out(task, parts=("dataset",))
        _tried.add(task)


def try_out(
    task: Task,
    wants_accuracy: bool = False,
    by_client: bool = False,
    parts: Sequence[str] = ("dataset", "test"),
    fits: Callable[[keras.Model], None] = lambda model: None,
) -> None:
    """Raises: UserError.

    wants_accuracy: whether the run ends by one; by_client: whether clients are measured too.
    parts: of the examples, those that are here.
    fits: looks at the model before anything is done with it.
    """
    import tensorflow as tf

    from fluffle.worker.training.gradients import gradients_of
    from fluffle.worker.training.local_state import batch_of
    from fluffle.worker.training.variables import has_own, parameters_of, values_of

    model = _model_of(task)
    fits(model)
    own_step, own_test = has_own(model, "train_step"), has_own(model, "test_step")
    if not own_step or not model.compiled:
        compile_model(task, model, "sgd")
    check_model(model)
    values_of(model)  # every weight can travel
    parameters = [v.value for v in parameters_of(model)]
    for part in parts:
        examples = examples_of(task, part)
        _check_lengths(part, examples)
        _check_text(part, examples)
        first = slice(batch_of(model) or _BATCH)
        x, y = (mapped(partial(_tensor, part=part, first=first), one) for one in examples)
        _check_outputs(part, model, examples)
        if own_step and part == "dataset":
            _step_itself(model, "train_step", (task.preprocess(x), y))
            continue
        if own_test and part == "test":
            found = _step_itself(model, "test_step", (task.preprocess(x), y))
            _check_metrics(found, wants_accuracy, by_client)
            return
        with tf.GradientTape() as tape:
            predicted = _predicted(task, model, part, x)
            _check_labels(task, part, examples, model)
            try:
                loss = model.compute_loss(x, y, predicted, training=part == "dataset")
                model.compute_metrics(x, y, predicted)
            except Exception as error:
                raise UserError(
                    f"{part}(): loss or metrics do not fit. The model gives {_shown(predicted)} "
                    f"for an example, y has {_shown(y)}: {' '.join(str(error).split())[:300]}"
                ) from error
        if part == "dataset":
            gradients_of(tape, loss, parameters)
    _check_metrics(model.get_metrics_result(), wants_accuracy, by_client)
    _check_state(model, task.preprocess(x))


def _check_fits(model: keras.Model, experiment: Experiment) -> None:
    """What is too large for a message is said before there is a run."""
    from fluffle.worker.training.travel import Travel, check_travels

    groups = experiment.weights
    travel = None if groups is None else Travel(groups, model)
    check_travels(model, travel, 2 if experiment.aggregation.strategy == "scaffold" else 1)


def _try_out_groups(task: Task, table: WeightsTable) -> None:
    from fluffle.worker.training.travel import Travel

    Travel(table, _model_of(task))


def _try_out_phases(task: Task, experiment: Experiment) -> None:
    """What an algorithm trains in a phase of its own has to be there."""
    from fluffle.worker.training.algorithms.registry import algorithm_of
    from fluffle.worker.training.phases import stages_of
    from fluffle.worker.training.travel import Travel
    from fluffle.worker.training.variables import parameters_of

    plan = Plan.of(experiment, "delta")
    phases = algorithm_of(plan).phases(plan.training.epochs)
    if not phases:
        return
    model = _model_of(task)
    groups = None if plan.weights is None else Travel(plan.weights, model).groups
    stages_of(phases, plan.training.epochs, groups, len(parameters_of(model)))


def _try_out_arrays(task: ArrayTask, experiment: Experiment) -> None:
    if experiment.evaluation.by_client:
        raise UserError("evaluation.by_client: an ArrayTask evaluates on all test examples")
    devices = experiment.devices
    if devices is not None and devices.effective("stragglers"):
        raise UserError(f"{NO_STRAGGLERS}: set devices.stragglers = 0")
    task.training = experiment.training
    weights = travelling(trying(task, task.weights))
    check_fits(spec(weights))
    own = {name.partition("/")[2]: array.copy() for name, array in weights.items()}
    metrics = numbers(trying(task, lambda: task.evaluate(own)), "evaluate()")
    _check_metrics(dict(metrics), experiment.experiment.target_accuracy is not None)
    if type(task).dataset is not ArrayTask.dataset and experiment.task.clients:
        trying(task, lambda: task.client_indices("0"))


def check_model(model: keras.Model) -> None:
    """Raises: UserError for a model that cannot be trained."""
    if not any("float" in v.dtype for v in model.trainable_weights):
        raise UserError("the model has no trainable weights: nothing to learn (is it frozen?)")


def _step_itself(model: keras.Model, method: str, data: tuple[Any, Any]) -> dict[str, Any]:
    """What the model's own step says of a batch. Raises: UserError."""
    found = getattr(model, method)(data)
    if not isinstance(found, dict) or not found:
        raise UserError(f"{method}() has to return a dict of losses and metrics")
    return found


def _model_of(task: Task) -> keras.Model:
    import keras

    model = task.model()
    if not isinstance(model, keras.Model):
        raise UserError(f"model() gave {_kind(model)}: it has to give a keras.Model")
    if not model.built:
        raise UserError("model() gave a model without weights: let it begin with keras.Input(…)")
    return model


def _tensor(array: Any, part: str, first: slice) -> Any:
    import tensorflow as tf

    try:
        return tf.constant(array[first])
    except (ValueError, TypeError):
        raise UserError(
            f"{part}(): these make no tensor: examples of several lengths? Pad them to one "
            "(keras.utils.pad_sequences), or give them as a stream, which pads by the batch"
        ) from None


def _predicted(task: Task, model: keras.Model, part: str, x: Any) -> Any:
    taken = task.preprocess(x)
    try:
        return model(taken, training=part == "dataset")
    except Exception as error:
        raise UserError(
            f"{part}(): the model does not take {_shown(taken)} for an example: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


def _check_lengths(part: str, examples: Examples) -> None:
    counts = {}
    for name, array in (*named_leaves(examples.x, "x"), *named_leaves(examples.y, "y")):
        if getattr(array, "shape", None) == ():
            raise UserError(f"{part}(): {name} is one number, and no array of examples")
        counts[name] = len(array)
    first, *_ = counts.values()
    for name, count in counts.items():
        if count != first:
            raise UserError(f"{part}(): {first} examples in x and {count} in {name}")
    if not first:
        raise UserError(f"{part}() gave no examples")


def _check_text(part: str, examples: Examples) -> None:
    """Labels that no loss takes, for which Keras blames a conversion."""
    for name, array in named_leaves(examples.y, "y"):
        first = np.asarray(array[:1]).reshape(-1)
        if len(first) and isinstance(first[0], str | bytes):
            said = printable(str(first[0]), 40)
            raise UserError(
                f"{part}(): {name} is text ('{said}'), and a loss takes numbers: number the "
                "classes from 0, the same at every client, as in "
                "np.searchsorted(['cat', 'cow', 'dog'], labels)"
            )


def _check_outputs(part: str, model: keras.Model, examples: Examples) -> None:
    outputs, targets = getattr(model, "outputs", None) or (), len([*named_leaves(examples.y, "y")])
    if len(outputs) > 1 and targets != len(outputs):
        raise UserError(
            f"{part}(): the model has several outputs, {len(outputs)}, and y is {targets}: give as "
            "many arrays, in a list, a tuple or a dict like the model's"
        )


def _check_labels(task: Task, part: str, examples: Examples, model: keras.Model) -> None:
    """Labels that the model has no output for, which TensorFlow finds late, or never."""
    import keras

    loss, shape = task.loss, getattr(model, "output_shape", None)
    sparse = loss == "sparse_categorical_crossentropy" or (
        isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
        and getattr(loss, "ignore_class", None) is None
    )
    if not sparse or is_structured(examples.y) or not isinstance(shape, tuple):
        return
    y = np.asarray(examples.y)
    classes = shape[-1]
    if not isinstance(classes, int) or y.dtype.kind not in "iuf":
        return
    wrong = np.argwhere(~((y >= 0) & (y < classes)))
    if len(wrong):
        example = int(wrong[0][0])
        file = user_code.file_of(type(task)).name
        raise UserError(
            f"{file}: {part}(): example {example} has the label {y[tuple(wrong[0])]}, and the "
            f"model has {classes} outputs, so labels are 0 to {classes - 1}: number the classes "
            f"from 0, or let the last layer have one output for each"
        )


def _check_metrics(found: dict[str, Any], wants_accuracy: bool, by_client: bool = False) -> None:
    names: list[str] = []
    found = {"loss": 0.0} | found
    for name, value in found.items():
        size = int(np.prod(np.shape(value)))
        names += [name] if np.ndim(value) == 0 else [f"{name}_{i}" for i in range(size)]
    most = MOST_METRICS - _BY_CLIENT * by_client
    if len(names) > most:
        raise UserError(
            f"too many metrics: {len(names)} values with the loss, and at most {most} can travel; "
            "let some stand for several classes (average=…), or measure an exported model"
        )
    for name in names:
        if len(name) > 64:
            raise UserError(f"the metric {name} has a name of more than 64 letters: give name=…")
    if wants_accuracy and "accuracy" not in named_accuracy(dict.fromkeys(names, 0.0)):
        raise UserError(
            "experiment.target_accuracy would never apply: the task has no accuracy metric "
            f"(it has {', '.join(names) or 'none'}); add 'accuracy' to metrics, or stop by "
            "experiment.patience, versions or max_minutes"
        )


def _check_state(model: keras.Model, x: Any) -> None:
    """What a layer learns beside its weights would stay where it was learnt."""
    import tensorflow as tf

    from fluffle.worker.training.local_state import recurrent_states

    known = {id(v.value) for v in (*model.variables, *recurrent_states(model))}
    traced = tf.function(lambda: model(x, training=True), autograph=False)
    for variable in traced.get_concrete_function().graph.variables:
        if id(variable) not in known:
            raise UserError(
                f"a layer keeps {variable.name} in a variable that is no weight, so it would not "
                "travel: make it with add_weight(…, trainable=False)"
            )


def _shown(part: Any) -> str:
    """dtype and shape of an example of this."""
    shown = []
    for name, tensor in named_leaves(part, ""):
        shown.append(f"{name}{' ' * bool(name)}{tensor.dtype.name}{list(tensor.shape[1:])}")
    return ", ".join(shown)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
