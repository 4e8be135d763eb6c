"""A task's loss and metrics, which are Keras's own, by name or object."""

from __future__ import annotations

import copy
import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fluffle.schemas import UserError

if TYPE_CHECKING:
    import keras

    from fluffle.worker.tasks.task import Task

#: Metrics that Keras's ``compile`` knows by a short name, and makes to fit the loss.
_SHORT = ("accuracy", "acc", "crossentropy", "ce")
#: What ``accuracy`` stands for: it is called so however a task asks for it.
_ACCURACIES = ("acc", "sparse_categorical_accuracy", "categorical_accuracy", "binary_accuracy")


def compile_model(
    task: Task, model: keras.Model, optimizer: Any = None, weighted: bool = False
) -> None:
    """Give the model the task's loss and metrics. Raises: UserError where Keras has no such.

    weighted: metrics count examples by their weights, as the loss does.
    """
    import keras

    metrics = task.metrics
    if metrics is None:
        metrics = ("accuracy",) if _classifies(task.loss) else ()
    if isinstance(metrics, str) or not hasattr(metrics, "__iter__"):
        metrics = (metrics,)
    model.compile(
        optimizer=optimizer,
        loss=_each(lambda loss: _known(loss, "loss", keras.losses.get, keras.losses), task.loss),
        loss_weights=task.loss_weights,
        **{"weighted_metrics" if weighted else "metrics": _each(_Metrics().made, metrics)},
    )


def named_accuracy(metrics: dict[str, float]) -> dict[str, float]:
    """The same, with the one metric that is an accuracy called so."""
    found = [name for name in metrics if name in _ACCURACIES]
    if "accuracy" in metrics or len(found) != 1:
        return metrics
    return {"accuracy" if name in found else name: value for name, value in metrics.items()}


def _each(function: Callable[[Any], Any], named: Any) -> Any:
    """The same structure, lists for tuples, with ``function`` of each loss or metric in it."""
    if isinstance(named, Mapping):
        return {key: _each(function, one) for key, one in named.items()}
    if isinstance(named, list | tuple):
        return [_each(function, one) for one in named]
    return function(named)


class _Metrics:
    """Metrics of our own: each object keeps its counts in variables, and each trainer has one.

    Names that Keras has made up are numbered within the task: it counts them by process, and the
    same metric would be ``auc`` in one trainer and ``auc_1`` in the next.
    """

    def __init__(self) -> None:
        self._made_up: Counter[str] = Counter()

    def made(self, metric: Any) -> Any:
        """The metric that Keras's ``compile`` takes for this one."""
        import keras

        if isinstance(metric, type) and issubclass(metric, keras.metrics.Metric):
            return self._named(metric())
        if isinstance(metric, keras.metrics.Metric):
            return self._named(_copy_of(metric))
        if metric is None or metric in _SHORT:
            return metric
        return _known(metric, "metric", keras.metrics.get, keras.metrics)

    def _named(self, metric: Any) -> Any:
        name = re.sub(r"_\d+$", "", metric.name)
        if name.replace("_", "") == type(metric).__name__.lower():
            number = self._made_up[name]
            self._made_up[name] += 1
            metric.name = f"{name}_{number}" if number else name
        return metric


def _copy_of(metric: Any) -> Any:
    """Another of the same; one of the user's own by what it holds, since few have get_config()."""
    kind = type(metric)
    try:
        if kind.__module__.partition(".")[0] == "keras":
            return kind.from_config(metric.get_config())
        twin = object.__new__(kind)
        twin.__dict__.update(copy.deepcopy(vars(metric), {id(metric): twin}))
        return twin
    except Exception as error:
        raise UserError(
            f"the metric {metric.name} cannot be made anew for each trainer: give the class itself "
            f"({kind.__name__}) in metrics, or let get_config() and __init__ fit each other: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


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
    if isinstance(loss, dict | list | tuple):
        return False  # of which output?
    name = getattr(loss, "name", None) or getattr(loss, "__name__", None) or str(loss)
    return "crossentropy" in name.lower().replace("_", "")
