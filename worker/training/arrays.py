"""Training of an ``ArrayTask``: its own code, between arrays as they travel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fluffle.schemas import Plan, Tensors, UserError
from fluffle.schemas.tensors import DTYPES, NAME, dtype_name, misfit, model_groups, spec
from fluffle.worker.tasks.arrays import ArrayTask
from fluffle.worker.tasks.registry import load_task, trying
from fluffle.worker.training.message_size import check_fits
from fluffle.worker.training.seeds import Streams
from fluffle.worker.training.trained import Trained

#: Where a client's state is kept, by the names that the task gives.
_OWN = "own/"
#: What simulated stragglers would need.
NO_STRAGGLERS = "devices.stragglers do fewer epochs, and an ArrayTask has its own loop"


class ArrayTrainer:
    """Trains and evaluates one plan's ``ArrayTask``. One for each thread."""

    def __init__(self, plan: Plan) -> None:
        """Raises: UserError where the plan asks for what such a task does itself."""
        self._plan = plan
        task = load_task(plan)
        assert isinstance(task, ArrayTask)
        self._task = task
        task.training = plan.training
        if plan.asks is not None or plan.training.algorithm or plan.training.proximal_mu:
            what = plan.training.algorithm or ("the strategy" if plan.asks else "proximal_mu")
            raise UserError(
                f"{what} changes how a client trains, and an ArrayTask trains by itself: choose "
                "another, and write that into train()"
            )
        if plan.weights is not None:
            raise UserError("[weights] are for Keras models: an ArrayTask sends what it returns")
        self._spec = spec(self.initial())
        check_fits(self._spec)

    def initial(self) -> Tensors:
        """The weights of version 0."""
        return travelling(trying(self._task, self._task.weights))

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
        """As ``Trainer.train``; the task's own loop cannot be stopped.

        Raises: UserError for what the task must not return.
        """
        started = time.perf_counter()
        if epochs is not None and epochs != self._plan.training.epochs:
            raise UserError(NO_STRAGGLERS)
        weights = self._own(base)
        rng = Streams(self._plan.seed, client, turn, version).generator("task")
        kept = None
        if state is not None:
            kept = {k.removeprefix(_OWN): a for k, a in state.items() if k.startswith(_OWN)}
        made: Any = trying(self._task, lambda: self._task.train(weights, client, rng, kept))
        if not isinstance(made, tuple) or len(made) != 4:
            raise UserError("train() has to return (weights, examples, metrics, state)")
        local, examples, metrics, after = made
        if not (isinstance(examples, int | np.integer) and examples > 0):
            raise UserError(f"train() returned {examples!r} for how many examples it had")
        if after and not self._plan.keeps_state:
            raise UserError("train() returned a state: set training.keep_state = true to keep it")
        return Trained(
            self._checked(local),
            int(examples),
            numbers(metrics, "train()"),
            time.perf_counter() - started,
            state={_OWN + key: np.asarray(array) for key, array in (after or {}).items()},
        )

    def evaluate(
        self, weights: Tensors, by_client: bool = True, state: Tensors | None = None
    ) -> tuple[dict[str, float], int]:
        """The metrics on test examples, and how many those are: 0 where the task does not say."""
        own = self._own(weights)
        metrics = numbers(trying(self._task, lambda: self._task.evaluate(own)), "evaluate()")
        says = type(self._task).test is not ArrayTask.test
        return metrics, len(self._task.test().y) if says else 0

    def _own(self, tensors: Tensors) -> dict[str, Any]:
        """Copies under the task's own names. Raises: ValueError where they are not its model's."""
        if wrong := misfit(spec(model_groups(tensors)), self._spec):
            raise ValueError(f"these weights do not fit {self._plan.task.name}: {wrong}")
        return {name.partition("/")[2]: np.array(tensors[name]) for name in self._spec}

    def _checked(self, local: Mapping[str, Any]) -> Tensors:
        found = {}
        for name, (dtype, shape) in self._spec.items():
            key = name.partition("/")[2]
            if key not in local:
                raise UserError(f"train() returned no {key!r}, which weights() has")
            array = np.asarray(local[key])
            if array.shape != shape or not np.can_cast(array.dtype, DTYPES[dtype], "same_kind"):
                raise UserError(
                    f"train() returned {key!r} as {array.dtype}{list(array.shape)}, and weights() "
                    f"has it as {dtype}{list(shape)}"
                )
            found[name] = array.astype(DTYPES[dtype], copy=False)
        if unknown := local.keys() - {name.partition("/")[2] for name in found}:
            raise UserError(f"train() returned {sorted(unknown)[0]!r}, which weights() has not")
        return found


def travelling(weights: Mapping[str, Any]) -> Tensors:
    """A task's arrays, named as they travel. Raises: UserError for what cannot."""
    if not isinstance(weights, Mapping) or not weights:
        raise UserError("weights() has to return a dict of arrays")
    found: Tensors = {}
    for key, value in weights.items():
        array = np.array(value)
        group = "trainable" if array.dtype.kind == "f" else "non_trainable"
        if not NAME.fullmatch(f"{group}/{key}") or dtype_name(array) not in DTYPES:
            raise UserError(
                f"weights() has {key!r} as {array.dtype}: names have letters, digits, _, . and -, "
                f"and arrays are {', '.join(DTYPES)}"
            )
        found[f"{group}/{key}"] = array
    if not any(name.startswith("trainable/") for name in found):
        raise UserError("weights() has no array of a floating-point dtype: nothing to learn")
    return found


def numbers(metrics: Mapping[str, Any], where: str) -> dict[str, float]:
    """Metrics as numbers. Raises: UserError."""
    try:
        return {str(name): float(value) for name, value in metrics.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{where} has to give its metrics as a dict of numbers") from None
