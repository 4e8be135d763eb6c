"""One thing that is made from a plan, kept as long as the plan stays the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from fluffle.schemas import Plan, UserError
from fluffle.worker.tasks.arrays import ArrayTask
from fluffle.worker.tasks.registry import load_task
from fluffle.worker.tasks.task import StreamedTask
from fluffle.worker.training.arrays import ArrayTrainer
from fluffle.worker.training.runtime import check_engine
from fluffle.worker.training.trained import LocalTrainer
from fluffle.worker.training.trial import try_once, untried

if TYPE_CHECKING:
    from fluffle.worker.training.lanes.trainer import JaxTrainer

T = TypeVar("T")

#: TensorFlow is imported by the first thread that needs it, while the others wait.
_IMPORTING = threading.Lock()


class PerPlan(Generic[T]):
    """Makes a trainer (or its like) when a plan comes, and anew when another does."""

    def __init__(self, make: Callable[[Plan], T]) -> None:
        self._make = make
        self._made: tuple[Plan, T] | None = None

    def of(self, plan: Plan) -> T:
        """What belongs to this plan. Raises: what ``make`` raises."""
        made = self._made
        if made is not None and (made[0] is plan or made[0] == plan):
            return made[1]
        made = self._made = None  # let the old one go before the new one is built
        thing = self._make(plan)
        self._made = (plan, thing)
        return thing


def _jax_trainer(plan: Plan) -> JaxTrainer:
    from fluffle.worker.training.lanes.trainer import JaxTrainer

    return JaxTrainer(plan)


#: One for all threads of the process, which share what it has compiled.
_on_jax = PerPlan(_jax_trainer)


def make_trainer(plan: Plan) -> LocalTrainer:
    """A trainer; its engine is imported only once there is something to train with it."""
    check_engine(plan.training.engine)
    if plan.training.engine == "jax":
        with _IMPORTING:
            return _on_jax.of(plan)
    task = load_task(plan)
    if plan.training.steps and isinstance(task, ArrayTask | StreamedTask):
        raise UserError("training.steps is for examples in memory, and a loop of ours: set epochs")
    if isinstance(task, ArrayTask):
        return ArrayTrainer(plan)
    with _IMPORTING:
        from fluffle.worker.training.own_step import OwnStepTrainer
        from fluffle.worker.training.streamed import StreamingTrainer
        from fluffle.worker.training.trainer import Trainer
    if isinstance(task, StreamedTask):
        if plan.asks is not None or plan.training.algorithm not in (None, "fedprox"):
            what = plan.training.algorithm or "scaffold and fednova"
            raise UserError(f"{what} train in memory: they take no StreamedTask")
        return StreamingTrainer(plan)
    trainer = Trainer(plan)
    return OwnStepTrainer(plan) if trainer.has_own_steps else trainer


def _gathered_on_jax(plan: Plan) -> LocalTrainer:
    from fluffle.worker.training.lanes.gathered import Gathered

    return Gathered(_on_jax.of(plan))


#: As the trainer below it: threads gather for its steps.
_gathering = PerPlan(_gathered_on_jax)


def make_slot_trainer(plan: Plan) -> LocalTrainer:
    """As ``make_tried_trainer``, for slots: where the plan has lanes, they share its steps."""
    trainer = make_tried_trainer(plan)
    if plan.training.engine != "jax" or (plan.training.lanes or 1) == 1:
        return trainer
    with _IMPORTING:
        return _gathering.of(plan)


def make_tried_trainer(plan: Plan) -> LocalTrainer:
    """As ``make_trainer``, for whoever trains: a task from a file is tried first, once."""
    trainer, task = make_trainer(plan), load_task(plan)
    if plan.training.engine != "jax" and untried(task):
        from fluffle.worker.training.building import seeded

        with seeded(plan.seed):  # a model is built, which no other thread may do meanwhile
            try_once(task)
    return trainer
