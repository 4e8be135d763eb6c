"""A resident client as a service: one site, its own data; each new version is its turn.

    wait ──a model──┬─ of a run that is over: sum up; leave, or wait for the next
      ^             ├─ not for us (allow-list, identity): say why, and leave; or wait on
      │             ├─ without weights yet, or its (version, attempt) is behind us: wait on
      │             └─ else: measure it ─> train ─> measure what came of it ─> submit, confirmed
      └──────────────────────────────────────────────────────────────────────────────┘

What leaves the site is an update: tensors of the model's shapes, how many examples it was trained
on, the loss and metrics of the training, times and sizes. What is measured on held-out examples
stays here, and so does what a failure says: only its kind is told.

While the broker is away the port connects again for ever, and an update waits for its confirm.
A restarted site trains for the version that is current, and what it sent for that before is the
same update, which counts once. What the plan has it keep (personal layers, its optimizer's state)
never leaves the site, and is exact through that (``fluffle.worker.services.site_states``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fluffle.broker import Closed, Envelope, WorkerPort
from fluffle.schemas import (
    Assignment,
    ClientUpdate,
    DecodeError,
    Event,
    GlobalModel,
    Message,
    Plan,
    Tensors,
    UserError,
)
from fluffle.schemas.errors import contained, describe, printable
from fluffle.schemas.messages import order, resident_update_id
from fluffle.schemas.sizes import human_bytes
from fluffle.worker.services.answers import Account, failed_update, make_update, train
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.contribution import Contribution, shown
from fluffle.worker.services.journal import Journal
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.services.simulated import describes_devices
from fluffle.worker.services.site_states import SiteStates
from fluffle.worker.services.turn import Fetch, Report, Step, Submit, Train, drive, turn_of
from fluffle.worker.tasks import custom
from fluffle.worker.tasks.registry import open_data
from fluffle.worker.tasks.task import Task
from fluffle.worker.training.per_plan import PerPlan, make_tried_trainer

if TYPE_CHECKING:
    from fluffle.worker.training.trained import LocalTrainer

_log = logging.getLogger(__name__)

_LOOK_UP_S = 0.5


class ResidentService:
    """Trains one site's data for every version, until the run is over or it is told to stop."""

    def __init__(
        self,
        port: WorkerPort,
        client: str,
        *,
        stay: bool = False,
        journal: Journal | None = None,
        states: ClientStates | None = None,
        objects: Callable[[GlobalModel], str] = lambda model: "",
        on_model: Callable[[GlobalModel, int], None] = lambda model, size: None,
        on_turn: Callable[[Message | None], None] = lambda answer: None,
        open_task: Callable[[Plan], Task] = open_data,
        make_trainer: Callable[[Plan], LocalTrainer] = make_tried_trainer,
    ) -> None:
        """
        stay: wait for the next run when one is over, or does not admit us.
        journal: is told what is sent, before and after.
        states: where it keeps what the plan wants kept; by default gone when this process is.
        objects: what the site has against a model's plan; nothing where it has nothing.
        on_model: is told of every model that arrives, and its size in bytes.
        on_turn: is told what was sent.
        open_task: the plan's task, once the site's data have been read.
        """
        self._port = port
        self._client = client
        self._stay = stay
        self._journal = journal or Journal()
        self._states = states or ClientStates()
        self._objects = objects
        self._on_model = on_model
        self._on_turn = on_turn
        self._shutdown = Shutdown(port)
        self._tasks = PerPlan(open_task)
        self._trainers = PerPlan(make_trainer)
        self._contribution: Contribution | None = None
        #: The newest (version, attempt) of this run that needs no training any more.
        self._behind = (-1, 0)
        self._received = 0
        self._refused = ""

    def stop(self) -> None:
        """Stop when the training under way is sent. From any thread, or a signal handler."""
        self._shutdown.stop()

    def run(self) -> None:
        """Contribute until the run is over, or stopped. Raises: UserError, Closed."""
        newest = None
        _log.info(f"{self._client} waits for a model")
        try:
            while not self._shutdown.told.is_set():
                envelope = self._port.wait_model(newest, _LOOK_UP_S)
                if envelope is None:
                    continue
                if self._on_envelope(envelope):
                    return
                if envelope.model() is None:
                    self._port.forget_model(envelope)
                else:
                    newest = order(envelope.headers)
        except Closed:
            if not self._shutdown.told.is_set():
                raise
        finally:
            self._sum_up()

    def _on_envelope(self, envelope: Envelope) -> bool:
        """True where there is nothing left to do."""
        try:
            model = envelope.message()
        except DecodeError as error:
            _log.info(
                f"cannot read a model ({error}): is this Fluffle older than the aggregator's?"
            )
            return False
        if not isinstance(model, GlobalModel):
            return False
        self._on_model(model, envelope.size)
        self._received += envelope.size
        run_id, known = model.run.run_id, self._contribution
        if model.final:
            if known is None or known.run_id != run_id:
                return False
            known.bytes_down += envelope.size
            return self._run_is_over(model)
        refusal = self._refusal(model)
        if refusal:
            self._refuse(refusal)
            return False
        if known is None or known.run_id != run_id:
            known = self._begin(model)
        known.bytes_down += envelope.size
        if not model.asks_for_weights and (model.version, model.attempt) > self._behind:
            self._contribute(model, known)
        return False

    # ---- who may take part

    def _refusal(self, model: GlobalModel) -> str:
        """Why the aggregator would reject all that we send; nothing if it would not."""
        run, user = model.run.run_id, self._port.user
        if not model.plan.admits(self._client):
            return (
                f"run {run} does not admit {self._client}: whoever leads it has to add the name to "
                "participation.residents"
            )
        if model.plan.identity == "broker" and user not in (None, self._client):
            return (
                f"run {run} wants resident clients to be users of their own names on the broker, "
                f"and we are user {user!r}: connect as {self._client}"
            )
        if model.plan.keeps_with_server:
            return (
                f"run {run} wants clients to keep state that goes with what the aggregator counted "
                "of them, which a site is never told"
            )
        objection = self._objects(model)
        return f"run {run}: {objection}" if objection else ""

    def _refuse(self, why: str) -> None:
        if not self._stay:
            raise UserError(why)
        if why != self._refused:
            self._refused = why
            _log.warning(f"{why}; waiting")

    # ---- one run

    def _begin(self, model: GlobalModel) -> Contribution:
        self._sum_up()
        self._contribution = Contribution(model.run.run_id)
        self._behind = (-1, 0)
        _log.info(f"admitted to run {model.run.run_id}")
        if describes_devices(model.plan):
            _log.info(
                f"run {model.run.run_id} describes devices ([devices]), and a site never simulates "
                "any: it trains without them"
            )
        event = Event(run=model.run, kind="joined", worker=self._client, slots=1)
        self._port.emit(Envelope.of(event))
        return self._contribution

    def _run_is_over(self, model: GlobalModel) -> bool:
        self._port.emit(Envelope.of(Event(run=model.run, kind="left", worker=self._client)))
        self._sum_up()
        _log.info(f"run {model.run.run_id} is over{'; waiting for the next' * self._stay}")
        return not self._stay

    def _sum_up(self) -> None:
        if self._contribution is not None:
            _log.info(self._contribution.summary())
        self._contribution = None

    # ---- one version

    def _contribute(self, model: GlobalModel, to: Contribution) -> None:
        turn = Assignment(
            run=model.run,
            assignment_id=resident_update_id(
                model.run.run_id, self._client, model.version, model.attempt
            ),
            client=self._client,
            turn=model.attempt + 1,
            version=model.version,
        )
        try:
            task = self._tasks.of(model.plan)
        except UserError as error:
            self._tell_failure(model, turn, to, "data or task cannot be read at the site")
            self._refuse(describe(error))
            return
        started = time.perf_counter()
        line = ""

        def do(step: Step) -> Any:
            nonlocal line
            match step:
                case Fetch():
                    return model
                case Train():
                    result, line = self._train(step, to)
                    return result
                case Submit(update):
                    size = self._submit(update, model)
                    to.add(update, size)
                    passed = time.perf_counter() - started
                    _log.info(f"{line}; {human_bytes(size)} sent, {passed:.1f} s in all")
                case Report(error):
                    self._failed(model, turn, to, error, task)

        drive(turn_of(turn), do)

    def _failed(
        self,
        model: GlobalModel,
        turn: Assignment,
        to: Contribution,
        error: BaseException,
        task: Task,
    ) -> None:
        kind = printable(type(error).__name__, 100)
        self._tell_failure(model, turn, to, f"{kind} at the site")
        known = isinstance(error, UserError)
        why = describe(error) if known else custom.explain(error, type(task))
        if not to.updates and not self._stay:
            raise UserError(f"cannot train here: {why}") from error
        _log.warning(f"version {model.version}: the training failed: {why}")

    def _tell_failure(
        self, model: GlobalModel, turn: Assignment, to: Contribution, kind: str
    ) -> None:
        told = UserError(f"{kind}, whose log says more")
        to.bytes_up += self._submit(failed_update(turn, self._client, model.version, told), model)
        to.failures += 1

    def _train(self, step: Train, to: Contribution) -> tuple[ClientUpdate | BaseException, str]:
        """The update and what to say of it, or the error."""
        started, model = time.perf_counter(), step.model
        try:
            trainer = self._trainers.of(model.plan)
            turn, states = (model.version, model.attempt), self._own_states(model)
            state = self._load(states, turn) if model.plan.keeps_state else None
            of_global, held_out = trainer.evaluate(model.tensors, by_client=False, state=state)
            trained = train(step, trainer, state)
            kept = trained.state
            of_local, _ = trainer.evaluate(trained.tensors, by_client=False, state=kept)
            received, self._received = self._received, 0
            account = Account(self._client, time.perf_counter() - started, received)
            # No memory: which of its updates was counted last, a resident is never told.
            update, _ = make_update(step, trained, None, account, np.random.default_rng)
            if model.plan.keeps_state:
                states.save(turn, kept)
        except BaseException as error:  # whatever a task raises costs one version, not the site
            return contained(error), ""
        line = f"version {model.version}: trained on {trained.examples:,} examples"
        metric = next((m for m in ("accuracy", "loss") if m in of_global and m in of_local), None)
        if held_out and metric:
            before, after = of_global[metric], of_local[metric]
            to.measured(metric, before, after)
            here = f"{metric} on {held_out:,} held-out ones"
            line += f"; {here}: global {shown(metric, before)}, local {shown(metric, after)}"
        return update, line

    def _own_states(self, model: GlobalModel) -> SiteStates:
        return SiteStates(self._states, model.run.run_id, self._client)

    def _load(self, states: SiteStates, turn: tuple[int, int]) -> Tensors | None:
        state = states.load(turn)
        if state is None:
            _log.warning(
                f"version {turn[0]}: what {self._client} kept before this version is not here any "
                "more: it starts anew"
            )
        elif not state:
            _log.info(f"nothing of {self._client} in this run is kept here yet: it starts anew")
        return state

    def _submit(self, answer: Message, model: GlobalModel) -> int:
        """How many bytes it was, once it is confirmed."""
        envelope = Envelope.of(answer)
        self._journal.sending(envelope)
        self._shutdown.submit(envelope)
        self._journal.confirmed(envelope)
        self._on_turn(answer)
        self._behind = max((model.version, model.attempt), self._came_meanwhile(model))
        return envelope.size

    def _came_meanwhile(self, model: GlobalModel) -> tuple[int, int]:
        """An attempt at this version that came while we trained asks for what we have just sent."""
        newest = self._port.newest_model()
        if newest is None or newest.headers.get("run_id") != model.run.run_id:
            return (-1, 0)
        _, _, version, attempt = order(newest.headers)
        return (version, attempt) if version == model.version else (-1, 0)
