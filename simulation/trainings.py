"""Trainings under the virtual clock: each by itself, or several in a step where an engine can."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fluffle.schemas import ClientUpdate, Tensors, UserError
from fluffle.schemas.errors import contained
from fluffle.simulation.bundles import Bundles
from fluffle.simulation.pool import Pool
from fluffle.worker.devices import DeviceOutcome
from fluffle.worker.services.answers import (
    Account,
    load_state,
    make_update,
    payload_bytes,
    train,
)
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.turn import Train
from fluffle.worker.training.per_plan import PerPlan, make_trainer
from fluffle.worker.training.seeds import Streams
from fluffle.worker.training.trained import Job

if TYPE_CHECKING:
    from fluffle.worker.training.lanes.trainer import JaxTrainer
    from fluffle.worker.training.trained import LocalTrainer, Trained

WORKER = "virtual"

#: An update, and what its client keeps.
Made = tuple[ClientUpdate, Tensors]


@dataclass(frozen=True, slots=True)
class Begun:
    """The start of a device."""

    at: float
    outcome: DeviceOutcome
    #: Bytes of tensors of its model, and of the update that it would send.
    download: int
    upload: int


@dataclass(frozen=True, slots=True)
class Training:
    """One client's training: what it needs beside the model, and what is made of it."""

    step: Train
    trained_at: float
    #: Virtual ones.
    seconds: float
    begun: Begun | None

    def made(self, trained: Trained, state: Tensors | None) -> Made:
        """Raises: UserError where it diverged."""
        step, plan = self.step, self.step.model.plan
        trained = dataclasses.replace(trained, seconds=self.seconds)
        account = Account(WORKER, 0.0, payload_bytes(step.model.tensors))
        turn = step.assignment
        # Who knows the seed can take it off again: for simulations.
        streams = Streams(plan.seed, turn.client, turn.turn, step.model.version)
        noise = partial(streams.generator, "noise")
        update, kept = make_update(step, trained, state, account, noise)
        if self.begun is None:
            return update, kept
        upload_s = self.begun.outcome.upload_s(payload_bytes(update.tensors))
        slot_s = self.trained_at + upload_s - self.begun.at
        return update.model_copy(update={"slot_s": slot_s}), kept


@dataclass(frozen=True, slots=True)
class Waited:
    """A result that comes."""

    wait: Callable[[], Made]
    #: In place of ``wait``: nobody will.
    abandon: Callable[[], None]


class Trainings:
    """Hands trainings to the pool, whose threads' trainers are ``PerPlan``."""

    def __init__(self, pool: Pool, states: ClientStates) -> None:
        self._pool = pool
        self._states = states
        self._bundles: Bundles | None = None

    def submit(self, step: Train, trained_at: float, seconds: float, begun: Begun | None) -> Waited:
        """A training whose result is due at this virtual time."""
        training = Training(step, trained_at, seconds, begun)
        if step.model.plan.training.engine == "jax":
            return self._bundled(training)

        def work(trainers: PerPlan[LocalTrainer]) -> Made:
            state = load_state(self._states, step)
            return training.made(train(step, trainers.of(step.model.plan), state), state)

        job = self._pool.submit(trained_at, work)
        return Waited(lambda: self._pool.wait(job), lambda: self._pool.abandon(job))

    def _bundled(self, training: Training) -> Waited:
        step = training.step
        trainer: JaxTrainer = make_trainer(step.model.plan)  # type: ignore[assignment]
        bundles = self._bundles = self._bundles or Bundles(self._pool, self._train, trainer.lanes)
        key = (step.model.version, trainer.shape(step.assignment.client, step.epochs))
        member = bundles.submit(training.trained_at, key, training)
        return Waited(lambda: bundles.wait(member), lambda: bundles.abandon(member))

    def _train(self, trainers: Any, trainings: Sequence[Training]) -> list[Made | BaseException]:
        """One that fails fails alone."""
        model = trainings[0].step.model
        trainer = trainers.of(model.plan)
        states = [load_state(self._states, one.step) for one in trainings]
        jobs = [
            Job(
                one.step.assignment.client, one.step.assignment.turn, one.step.epochs, model.version
            )
            for one in trainings
        ]
        found: list[Made | BaseException] = []
        many = trainer.train_many(model.tensors, jobs, states)
        for one, trained, state in zip(trainings, many, states, strict=True):
            if isinstance(trained, UserError):
                found.append(trained)
                continue
            try:
                found.append(one.made(trained, state))
            except BaseException as error:
                found.append(contained(error))
        return found
