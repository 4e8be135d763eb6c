"""Trainers that one run leaves for the next of the same shape: what is compiled stays compiled.

A trainer's graph depends on the model, the training's settings and the examples. Seeds, partitions,
the number of clients and devices come to it from outside, or not at all, so that runs which differ
in those alone can have the same trainer, one after the other, and give the bytes that they give in
a process of their own. Where that is not certain a trainer is built anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from fluffle.schemas import Plan
from fluffle.schemas.algorithms import ALGORITHMS
from fluffle.schemas.experiment import EvaluationTable, PartitionTable
from fluffle.worker.tasks.registry import TASKS, load_task
from fluffle.worker.tasks.structure import named_leaves
from fluffle.worker.tasks.task import Task, examples_of
from fluffle.worker.training.per_plan import make_trainer
from fluffle.worker.training.trained import LocalTrainer

#: Trainers that wait for another run.
_IDLE = 8
_MODULE = "fluffle.worker.training.trainer"
#: What a task may read of its run without its graph depending on it: whose examples are whose.
_OF_CLIENTS = ("owners", "test_owners", "client_indices")
_OF_RUN = {"seed", "clients", "partition", "__dict__"}


class Trainers:
    """Lends trainers to one run at a time. Used from several threads of it."""

    def __init__(self, make: Callable[[Plan], LocalTrainer] = make_trainer) -> None:
        self._make = make
        self._idle: list[LocalTrainer] = []
        self._lent: list[LocalTrainer] = []
        #: How many were built, and how many lent again.
        self.built = self.reused = 0

    def of(self, plan: Plan) -> LocalTrainer:
        """A trainer for this plan, which nobody else has until ``end``. Raises: what building one
        raises."""
        for trainer in list(self._idle):
            if _takes(trainer, plan):
                try:
                    self._idle.remove(trainer)
                except ValueError:  # another thread was first
                    continue
                trainer.adopt(plan)  # type: ignore[attr-defined]
                self.reused += 1
                self._lent.append(trainer)
                return trainer
        trainer = self._make(plan)
        self.built += 1
        self._lent.append(trainer)
        return trainer

    def end(self) -> None:
        """The run is over: what it had may go to the next."""
        self._idle = [*self._lent, *self._idle][:_IDLE]
        self._lent = []


def shape_of(plan: Plan) -> Plan:
    """The plan without what no graph depends on."""
    return plan.model_copy(
        update={
            **{"seed": 0, "partition": PartitionTable(), "evaluation": EvaluationTable()},
            **{"pause_s": (0.0, 0.0), "devices": None, "residents": None, "identity": None},
            **{"update": None, "sends": "delta"},
            "task": plan.task.model_copy(update={"clients": 0}),
        }
    )


def _takes(trainer: LocalTrainer, plan: Plan) -> bool:
    """Whether this trainer is one that the plan would build, but for what ``adopt`` changes."""
    if type(trainer).__module__ != _MODULE:  # streams and steps of a model's own
        return False
    before: Plan = trainer.plan  # type: ignore[attr-defined]
    task: Task = trainer.task  # type: ignore[attr-defined]
    if before == plan:  # unless a cell of a notebook has made another class of the name
        return type(task) is type(load_task(plan))
    own_algorithm = plan.training.algorithm not in (None, *ALGORITHMS)
    if own_algorithm or plan.weights is not None or shape_of(before) != shape_of(plan):
        return False
    return _same_task(task, load_task(plan))


def _same_task(one: Task, other: Task) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if type(one) not in TASKS.values() and not (_is_of_no_run(type(one)) and _alike(one, other)):
        return False
    return all(
        _same_arrays(examples_of(one, part), examples_of(other, part))
        for part in ("dataset", "test")
    ) and _same_arrays(one.sample_weights(), other.sample_weights())


def _same_arrays(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    pairs = zip(named_leaves(one, ""), named_leaves(other, ""), strict=False)
    return all(a is b or (n == m and np.array_equal(a, b)) for (n, a), (m, b) in pairs)


def _alike(one: Task, other: Task) -> bool:
    """Whether two tasks hold the same, but for what they cache and whose run they are of."""
    names = {*vars(one), *vars(other)} - _OF_RUN - {"training"}
    for name in names:
        if isinstance(inspect.getattr_static(type(one), name, None), property | FunctionType):
            continue
        if hasattr(inspect.getattr_static(type(one), name, None), "func"):  # a cached property
            continue
        a, b = vars(one).get(name), vars(other).get(name)
        try:
            if not (a is b or bool(np.all(a == b))):
                return False
        except (TypeError, ValueError):
            return False
    return True


def _is_of_no_run(kind: type[Task]) -> bool:
    """Whether nothing that a class of a user's own says names the seed, or the like, of its run."""
    homes = kind.__mro__[: kind.__mro__.index(Task)]
    members = [(name, member) for home in homes for name, member in vars(home).items()]
    codes = (code for name, m in members if name not in _OF_CLIENTS for code in _codes(m))
    return not any(_OF_RUN & {*code.co_names} for code in codes)


def _codes(member: Any) -> Iterator[CodeType]:
    """The code of a function, and all that is within it; of properties that of theirs."""
    for function in (member, *(getattr(member, n, None) for n in ("func", "fget", "__func__"))):
        waiting = (
            [code] if isinstance(code := getattr(function, "__code__", None), CodeType) else []
        )
        while waiting:
            code = waiting.pop()
            yield code
            waiting += [one for one in code.co_consts if isinstance(one, CodeType)]
