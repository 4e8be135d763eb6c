"""The coordinator: a pure state machine that decides who trains and when a version is made.

No socket, file, thread, clock or random generator inside: it is driven by ``start``,
``on_update`` and ``on_timer`` and answers with effects, which the caller executes in order. Time is
whatever the caller's clock says, in seconds.

Phases and what moves them::

    start, no weights ──> INITIALISING ──weights arrive──> RUNNING
    start, weights    ──> RUNNING      (publish the current version, issue turns)
    RUNNING ──the trigger (a quorum), or the deadline with min_updates──> RUNNING, version + 1
    RUNNING ──deadline otherwise──> RUNNING (extend, republish; with attempt + 1 if nothing at all
                                    has come, a resident has failed, or waiting does not help) or
                                    FINISHING (on_deadline = abort)
    RUNNING ──the same, updates masked──> RUNNING, closed: recorded, its masks asked for
    closed ──the helper's sum──> RUNNING, version + 1;  ──refused──> FINISHING (failed)
    RUNNING ──a sampled cohort is settled (turns.py)──> RUNNING, version + 1
    RUNNING ──enough versions, accuracy, patience or minutes; nothing but failures──> FINISHING
    FINISHING ──FINAL_AGAIN_S──> FINISHING (publish the last version again, with attempt + 1)
    FINISHING ──final version evaluated, or FINAL_WAIT_S over──> DONE

Turns (one per open assignment)::

    issued ──update folded, rejected, or training failed──> closed, another is issued
    issued ──patience is over──> dropout, another is issued; its late update is still welcome
                                      (in cohort mode while its version is current)
    nobody there who may be chosen ──the next comes, is done, or a version is made──> issued

A published version says which bases are too old by now (``participation.stop_stale``): workers stop
training these, and the same turn goes on with the newest model; a cohort's ends. Here that is no
transition: the turn stays open until it is answered, overdue, or its cohort is over.

INITIALISING asks a worker by a turn. Where there are residents alone it asks the evaluator, by a
model without tensors, which is published with the next attempt when that turn is overdue.

Resident clients have no turns. Each sends once for every (version, attempt) that it sees, so its
id is one of these and what it sent before is a duplicate; it opens and closes no turn, and any of
them count towards the quorum, the deadline and min_updates like everybody else's. A resident counts
once for a version, whatever attempts it claims to answer, and its versions only grow: nobody fills
a buffer alone. What it keeps from one training to its next is its own affair.

With ``[secure_aggregation]`` a buffer that is due is closed first: the set of its updates is made
durable, and then the helper is asked for the sum of their masks, by whoever leads, until it has
answered. Who drives the coordinator gives it nothing in between (``Unmask``), so a closed buffer
is only ever asked for as one set. A client is in a buffer once.

Every update that is given in gets exactly one of Hold, Duplicate, Reject; a held one is settled
by the next MakeVersion or SaveBuffer, or by Finish (unused).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Literal

import numpy as np

from fluffle.aggregator.coordinator.admission import (
    EVALUATION_CHECKS,
    FAILURE_CHECKS,
    INITIAL_CHECKS,
    OF_THE_MODEL,
    REASONS,
    first_reason,
)
from fluffle.aggregator.coordinator.buffer import Buffer
from fluffle.aggregator.coordinator.effects import (
    Assign,
    CallAt,
    Checkpoint,
    Duplicate,
    Effect,
    Finish,
    Fold,
    Hold,
    MakeVersion,
    Publish,
    RecordDropouts,
    RecordEvaluation,
    RecordFailure,
    Reject,
    SaveBuffer,
    Unmask,
)
from fluffle.aggregator.coordinator.failures import FailuresInARow
from fluffle.aggregator.coordinator.selection import Selector
from fluffle.aggregator.coordinator.stopping import Stopping
from fluffle.aggregator.coordinator.timers import Timers
from fluffle.aggregator.coordinator.turns import Turns
from fluffle.aggregator.coordinator.update_admission import UpdateAdmission
from fluffle.aggregator.strategies.base import Strategy, asks_of, broadcast_of, listener_of
from fluffle.aggregator.triggers.base import Trigger
from fluffle.aggregator.triggers.registry import DEFAULT, make_trigger
from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    Evaluation,
    Experiment,
    GlobalModel,
    Masks,
    Plan,
    Run,
    Tensors,
    UnmaskRequest,
)
from fluffle.schemas.codec import one_line
from fluffle.schemas.extensions import guarded
from fluffle.schemas.messages import FromWorker

#: After so many deadlines residents are asked again even if some have answered: what is missing may
#: have been lost for good, as what was dead-lettered is.
ASK_AGAIN = 8

Phase = Literal["initialising", "running", "finishing", "done"]


class Coordinator:
    """Decides. ``hold_updates`` is how many unrecorded updates a partial checkpoint waits for."""

    def __init__(
        self,
        experiment: Experiment,
        strategy: Strategy,
        run: Run,
        checkpoint: Checkpoint,
        hold_updates: int = 32,
        selector: Selector | None = None,
        trigger: Trigger | None = None,
        helper_key: str | None = None,
    ) -> None:
        """
        selector: by default that of the experiment, for whom everybody is always there.
        trigger: by default that of the experiment.
        helper_key: the public key of the run's own helper, where it has one.
        """
        self.experiment = experiment
        self.run = run
        self.phase: Phase = "running" if checkpoint.state is not None else "initialising"
        self.version = checkpoint.version
        self.updates = checkpoint.updates
        self._secure = experiment.secure_aggregation is not None
        # Sums of masked updates are the same in any order.
        in_client_order = experiment.aggregation.deterministic and not self._secure
        self.buffer = Buffer(strategy, checkpoint, in_client_order, experiment.quorum)
        self._trigger = trigger or make_trigger(experiment)
        self.evaluated: Evaluation | None = None
        self._plan = Plan.of(experiment, strategy.sends, asks_of(strategy), helper_key)
        states = checkpoint.states if self._plan.keeps_state else None
        self._selector = selector or Selector(experiment)
        for version, folds in checkpoint.history:
            self._selector.observe(version, folds)
        self.turns = Turns(
            experiment,
            run,
            checkpoint.turn,
            self.buffer.clients,
            states,
            self._selector,
            checkpoint.sampling_key,
        )
        self._strategy = strategy
        self.admission = UpdateAdmission(experiment, run, strategy.sends, checkpoint)
        self._listens = listener_of(strategy) is not None
        self._heard, self._unheard = checkpoint.heard, list(checkpoint.unheard)
        self.stopping = Stopping(experiment.experiment, checkpoint.evaluations)
        self.hold_updates = hold_updates
        self._timers = Timers(experiment, checkpoint.elapsed_s)
        self._failures = FailuresInARow(experiment.concurrency)
        self._attempt = checkpoint.attempt
        self._extensions = 0
        self._resident_failed = False
        self._ending = ("", "")

    # ---- what drives it

    def start(self, now: float, initial: Tensors | None = None) -> list[Effect]:
        """Begin, or go on from the checkpoint; ``initial`` gives version 0 (``--initial``)."""
        self._timers.start(now)
        if self.phase == "running" and self.version >= self.experiment.experiment.versions:
            effects = list(self._finish("finished", f"{self.version} versions made", now))
        elif self.phase == "running" and self.buffer.awaits_masks:
            effects = [*self._publish(), self._ask_helper()]
            self._timers.restart_deadline(now)
        elif self.phase == "running":
            effects = [*self._publish(), *self._issue(now)]
            self._timers.restart_deadline(now)
        elif initial is not None:
            effects = list(self._make_first_version(initial, [], now))
        else:
            effects = list(self._ask_for_weights(now))
        return [*effects, self._call()]

    def on_update(
        self, update: FromWorker, seen_in: Literal["ledger", "buffer"] | None, now: float
    ) -> list[Effect]:
        """A message from the updates queue; ``seen_in`` says where its id is known already."""
        if isinstance(update, ClientUpdate):
            self.turns.patience.answered(update.update_id, now)
        if isinstance(update, Evaluation):
            effects = self._on_evaluation(update, now)
        elif isinstance(update, ClientFailed):
            effects = self._on_failed(update, now)
        elif seen_in == "ledger":
            effects = chain([Duplicate(update.update_id)], self._closed(update.update_id, now))
        elif seen_in == "buffer":
            effects = chain([Hold(update.update_id)], self._save_if_enough())
        elif self.phase == "initialising":
            effects = self._on_initial(update, now)
        else:
            effects = self._on_client_update(update, now)
        return [*effects, self._call()]

    def on_masks(self, masks: Masks, now: float) -> list[Effect]:
        """The helper's answer to what ``Unmask`` asked for."""
        effects: list[Effect] = []
        if masks.refused is not None:
            why = f"the helper refused to unmask the buffer: {one_line(masks.refused)}"
            effects += self._finish("failed", why, now)
        else:
            full = self.buffer.size >= self.experiment.quorum
            self.buffer.unmask(np.asarray(masks.tensors["masks/words"], np.uint32))
            effects += self._step("quorum" if full else "deadline", now)
            effects += self._issue(now)
        return [*effects, self._call()]

    def on_timer(self, now: float) -> list[Effect]:
        """Some time that ``CallAt`` asked for has come (or not: calling it early is harmless)."""
        effects: list[Effect] = []
        if self.phase == "finishing" and now >= self._timers.deadline:
            effects += self._wait_on(now)
        if self.phase in ("initialising", "running"):
            effects += self._drop_out(now)
        if self.turns.somebody_comes(now):
            effects += self._issue(now)
        if self.phase == "running":
            if now >= self._timers.ends_at():
                minutes = self.experiment.experiment.max_minutes
                effects += self._finish("finished", f"{minutes:g} minutes are over", now)
            elif now >= self._timers.deadline:
                effects += self._on_deadline(now)
        if self.phase == "running" and now >= self._timers.save_at():
            effects += self._save_buffer()
        return [*effects, self._call()]

    def pause(self) -> list[Effect]:
        """The caller is about to stop: make what is in the buffer durable."""
        return list(self._save_buffer()) if self.buffer.unrecorded else []

    def elapsed_s(self, now: float) -> float:
        """Seconds that the run has taken so far, earlier starts included."""
        return self._timers.elapsed_s(now)

    # ---- version 0

    def _ask_for_weights(self, now: float) -> Iterator[Effect]:
        turn = self.turns.initialise(self._plan, now)
        if self.experiment.task.clients:
            yield Assign([turn], self.turns.patience.seconds)
        else:
            yield self._model({})
            self._attempt += 1  # version 0 itself has to be newer

    def _on_initial(self, update: ClientUpdate, now: float) -> Iterator[Effect]:
        reason = first_reason(INITIAL_CHECKS, update, self.admission.rules)
        if reason is not None:
            yield Reject(update.update_id, reason)
            if reason in OF_THE_MODEL:
                why = f"the first weights are of no use ({reason}: {REASONS[reason]})"
                yield from self._turn_failed(update, why, now)
            return
        yield Hold(update.update_id)
        self.turns.close(update.update_id)
        weights = {name: array.copy() for name, array in update.tensors.items()}
        yield from self._make_first_version(weights, [Fold.of(update, 0)], now)

    def _make_first_version(
        self, weights: Tensors, folds: list[Fold], now: float
    ) -> Iterator[Effect]:
        self.buffer.start(weights)
        self.phase = "running"
        yield MakeVersion(0, self.buffer.state, "initial", folds, self.turns.resume_from)
        yield from self._publish()
        self._timers.restart_deadline(now)
        yield from self._issue(now)

    # ---- updates

    def _on_client_update(self, update: ClientUpdate, now: float) -> Iterator[Effect]:
        running = self.phase == "running"
        verdict = self.admission.judge(update, self.version, running, self.buffer, self.turns)
        if isinstance(verdict, str):
            yield Reject(update.update_id, verdict)
            yield from self._closed(update.update_id, now)
            return
        update = verdict.update
        yield Hold(update.update_id)
        self._failures.clear()
        self.turns.contributed(update)
        staleness = self.version - update.base_version
        self.buffer.add(update, Fold.of(update, staleness, verdict.norms))
        self._timers.hold(now)
        if self._is_due():
            usual = self.experiment.aggregation.trigger == DEFAULT
            yield from self._close("quorum" if usual else "trigger", now)
        else:
            yield from self._save_if_enough()
            yield from self._issue(now)

    def _on_failed(self, failure: ClientFailed, now: float) -> Iterator[Effect]:
        # Client 0 has the turn that makes version 0, however few clients there are.
        rules = replace(self.admission.rules, clients=max(1, self.admission.rules.clients))
        reason = first_reason(FAILURE_CHECKS, failure, rules)
        if reason is not None:
            yield Reject(failure.update_id, reason)
            return
        yield RecordFailure(failure, self._is_asked(failure))
        if not failure.client.isdecimal() and failure.base_version == self.version:
            self._resident_failed = True
        yield from self._turn_failed(failure, failure.reason, now)

    def _is_asked(self, failure: ClientFailed) -> bool:
        if failure.client.isdecimal():
            return failure.update_id in self.turns.open
        newest = (failure.base_version, failure.turn - 1)
        return newest == (self.version, self._attempt)

    def _turn_failed(
        self, answer: ClientFailed | ClientUpdate, why: str, now: float
    ) -> Iterator[Effect]:
        """This answer to an open turn is of no use; enough of them in a row end the run."""
        if not self.turns.close(answer.update_id):
            return
        self._failures.add(answer.turn)
        if self._failures.hopeless(self.turns.oldest_open(), self.phase == "initialising"):
            detail = f"{self._failures.count} trainings failed in a row: {one_line(why)}"
            yield from self._finish("failed", detail, now)
        elif self.phase == "initialising":
            yield from self._ask_for_weights(now)
        else:
            yield from self._issue(now)

    def _on_evaluation(self, evaluation: Evaluation, now: float) -> Iterator[Effect]:
        reason = first_reason(EVALUATION_CHECKS, evaluation, self.run, self.version)
        if reason is not None:
            yield Reject(evaluation.message_id, reason)
            return
        heard = self._listens and evaluation.version > self._heard and bool(evaluation.metrics)
        yield RecordEvaluation(evaluation, heard)
        if heard:
            self._heard = evaluation.version
            self._unheard.append((evaluation.version, evaluation.metrics))
        if self.evaluated is None or evaluation.version >= self.evaluated.version:
            self.evaluated = evaluation
        trouble = self.stopping.trouble(evaluation)
        if trouble is not None and self._ending[0] != "failed":  # the first is where it began
            self._ending = ("failed", trouble)
        ending = self.stopping.reason(evaluation.version, evaluation.metrics)
        if self.phase == "running" and trouble is not None:
            yield from self._finish(*self._ending, now)
        elif self.phase == "running" and ending is not None:
            yield from self._finish("finished", ending, now)
        elif self.phase == "finishing" and evaluation.version == self.version:
            yield from self._done()

    # ---- versions

    def _close(self, closed_by: str, now: float) -> Iterator[Effect]:
        """The buffer is due: the next version, or first the masks of this one."""
        if self._secure:
            self.buffer.close()
            yield from self._save_buffer()
            yield self._ask_helper()
        else:
            yield from self._step(closed_by, now)
            yield from self._issue(now)

    def _ask_helper(self) -> Unmask:
        members, words = self.buffer.members(), self.buffer.words()
        return Unmask(UnmaskRequest.of(self.run, self.version + 1, words, members))

    def _step(self, closed_by: str, now: float) -> Iterator[Effect]:
        folds = self.buffer.step(self._unheard)
        heard, self._unheard = [version for version, _ in self._unheard], []
        self.version += 1
        self.updates += len(self.buffer.closed)
        self.admission.close_version(self.buffer.closed)
        self._selector.observe(self.version, self.buffer.closed)
        self._attempt = self._extensions = 0
        self._resident_failed = False
        self._timers.release()
        self.turns.start_version()
        state, turn = self.buffer.state, self.turns.resume_from
        yield MakeVersion(self.version, state, closed_by, folds, turn, heard)
        if self.version >= self.experiment.experiment.versions:
            yield from self._finish("finished", f"{self.version} versions made", now)
        else:
            yield from self._publish()
            self._timers.restart_deadline(now)

    def _is_due(self) -> bool:
        if self.experiment.samples_secretly:
            return False  # the version waits for its whole cohort
        held = self.buffer.held
        enough = held.updates >= self.experiment.min_updates
        return enough and guarded("trigger", self._trigger, lambda: bool(self._trigger.due(held)))

    def _save_if_enough(self) -> Iterator[Effect]:
        """Record the buffer when it holds all that the prefetch allows: no other would arrive."""
        if self.buffer.unrecorded >= self.hold_updates:
            yield from self._save_buffer()

    def _save_buffer(self) -> Iterator[Effect]:
        self._timers.release()
        folds = self.buffer.record()
        yield SaveBuffer(self.buffer.state, folds, self.buffer.waiting, self.turns.resume_from)

    def _on_deadline(self, now: float) -> Iterator[Effect]:
        policy = self.experiment.aggregation.on_deadline
        if policy == "abort":
            text = f"{self.buffer.size} of {self.experiment.quorum} updates at the deadline"
            yield from self._finish("aborted", text, now)
        elif policy == "step" and self.buffer.size >= self.experiment.min_updates:
            yield from self._close("deadline", now)
        else:
            self._timers.restart_deadline(now)
            self._extensions += 1
            # Again at extensions 1, 2, 4, 8, …: a mailbox may have lost it, but need not drown.
            if self._extensions & (self._extensions - 1) == 0:
                # Who is in the buffer would train for it once more, in vain: only if need be.
                missing = self._resident_failed or self._extensions >= ASK_AGAIN
                self._attempt += self.buffer.size == 0 or missing
                self._resident_failed = False
                yield from self._publish()

    def _publish(self, final: bool = False) -> Iterator[Effect]:
        yield self._model(broadcast_of(self._strategy, self.buffer.state), final)

    def _model(self, tensors: Tensors, final: bool = False) -> Publish:
        return Publish(
            GlobalModel(
                run=self.run,
                version=self.version,
                attempt=self._attempt,
                final=final,
                updates=self._updates_told,
                plan=self._plan,
                tensors=tensors,
            )
        )

    @property
    def _updates_told(self) -> int:
        """How many updates the versions count; their expectation where that is a secret."""
        if not self.experiment.samples_secretly:
            return self.updates
        rate, clients = self.experiment.participation.sampling_rate, self.experiment.task.clients
        return round(self.version * rate * clients)

    # ---- the end

    def _finish(self, status: str, detail: str, now: float) -> Iterator[Effect]:
        self._ending = (status, detail)
        has_model = self.phase == "running"
        self.phase = "finishing"
        self.turns.stop()
        if has_model:
            yield from self._publish_last()
        evaluates = self.experiment.evaluation.every_updates > 0 and has_model
        evaluated = self.evaluated is not None and self.evaluated.version == self.version
        if evaluates and not evaluated:
            self._timers.wait_for_evaluation(now)
        else:
            yield from self._done()

    def _publish_last(self) -> Iterator[Effect]:
        self._attempt += 1
        yield from self._publish(final=True)

    def _wait_on(self, now: float) -> Iterator[Effect]:
        if self._timers.waits_on(now):
            yield from self._publish_last()
        else:
            yield from self._done()

    def _done(self) -> Iterator[Effect]:
        self.phase = "done"
        yield Finish(*self._ending, self.buffer.abandon())

    # ---- turns and timers

    def _issue(self, now: float) -> Iterator[Effect]:
        if self.phase == "running":
            assignments = self.turns.issue(self.version, now)
            if assignments:
                yield Assign(assignments, self.turns.patience.seconds)
            if self.turns.settled(self.version):
                yield from self._step("quorum", now)
                yield from self._issue(now)

    def _closed(self, update_id: str, now: float) -> Iterator[Effect]:
        if self.turns.close(update_id):
            yield from self._issue(now)

    def _drop_out(self, now: float) -> Iterator[Effect]:
        dropped: list[Assignment] = self.turns.overdue(now)
        if not dropped:
            return
        yield RecordDropouts(dropped)
        if self.phase == "initialising":
            yield from self._ask_for_weights(now)
        else:
            yield from self._issue(now)

    def _call(self) -> CallAt:
        return CallAt(self._timers.next(self.phase == "running", self.turns.next_call()))
