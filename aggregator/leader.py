"""The leader: drives the coordinator of one run from a port, and executes its effects.

It exists only while an aggregator leads. Order is everything here: weights on disk, then the
ledger's transaction, then the acks, then the publish. A crash between any two of these costs a
redelivery and nothing else.

    receive ─> decode ─> seen before? ─> coordinator ─> effects ─┬─> ledger ─> ack
                 └─> undecodable: ledger, copy to rejected, ack   └─> publish, assign

A rejected message has a copy in ``updates.rejected``, unless it was only slow (``OF_THEIR_TIME``):
the ledger has counted that, and ordinary lateness would push out what a person should see.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from fluffle.aggregator.coordinator.admission import OF_THEIR_TIME, REASONS, check_initial
from fluffle.aggregator.coordinator.coordinator import Coordinator
from fluffle.aggregator.coordinator.effects import (
    Assign,
    CallAt,
    Duplicate,
    Effect,
    Finish,
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
from fluffle.aggregator.disk_space import room_for_updates
from fluffle.aggregator.intake import Unusable, message_of
from fluffle.aggregator.ledger.sums import Traffic
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.prefetch import Prefetch
from fluffle.aggregator.presence import Presence
from fluffle.aggregator.progress import Progress
from fluffle.aggregator.unacked import Unacked
from fluffle.broker import AggregatorPort, Delivery, Envelope
from fluffle.schemas import (
    ClientUpdate,
    DecodeError,
    Evaluation,
    Event,
    GlobalModel,
    Masks,
    Tensors,
    UnmaskRequest,
    transforms,
)
from fluffle.schemas.codec import one_line
from fluffle.schemas.messages import FromWorker
from fluffle.schemas.tensors import spec

_log = logging.getLogger(__name__)

#: How often the first few rejections of a reason and a sender are said, in seconds.
_SAID_EVERY_S = 600.0
#: The helper is asked again after this, in seconds: the same request has the same answer.
_ASK_AGAIN_S = 20.0


class Leader:
    """Leads one run. The port leads, and the ledger's epoch is this leader's."""

    def __init__(
        self,
        coordinator: Coordinator,
        ledger: Ledger,
        port: AggregatorPort,
        *,
        clock: Callable[[], float],
        on_timing: Callable[[str, float], None],
    ) -> None:
        self.coordinator = coordinator
        #: When the coordinator wants to be called, by the clock.
        self.call_at = 0.0
        #: How the run ended; None while it goes on.
        self.outcome: str | None = None
        self.presence = Presence(clock)
        self._experiment = coordinator.experiment
        self._ledger = ledger
        self._port = port
        self._clock = clock
        self._progress = Progress(clock)
        self._on_timing = on_timing
        self._unacked = Unacked()
        self._said_what_decides = False
        self._prefetch = Prefetch(port)
        #: What the helper has been asked for, and when it is asked again.
        self._asked: UnmaskRequest | None = None
        self._ask_again_at = 0.0
        #: Bytes of models of which the message in our hands tells.
        self._fetched_bytes = 0
        #: Turns up to this may have been answered before they were issued: after a crash they are
        #: issued again, and what the old ones brought is on its way or recorded.
        ((self._answered,),) = ledger.query("SELECT COALESCE(MAX(turn), -1) FROM updates")

    def start(self, initial: Tensors | None) -> None:
        """Publish, issue turns and receive. Raises: UserError."""
        if self.coordinator.phase == "running":
            self._check_room()
        elif initial is not None:
            check_initial(initial)
        # Where there is a model it is published here, so that its size is known before any update.
        self._execute(self.coordinator.start(self._clock(), initial), None)
        self.coordinator.hold_updates = self._prefetch.begin()

    def pump(self, timeout_s: float) -> bool:
        """Do one thing: the timer if it is due, else a message; False if none came in time."""
        self.presence.flush()
        now = self._clock()
        if self._asked is not None:
            return self._await_masks(self._asked, timeout_s)
        if now >= self.call_at:
            self._execute(self.coordinator.on_timer(now), None)
            return True
        delivery = self._port.receive(min(self.call_at - now, timeout_s))
        if delivery is not None:
            self._on_delivery(delivery)
        return delivery is not None

    def _await_masks(self, asked: UnmaskRequest, timeout_s: float) -> bool:
        """Take the helper's answer, and nothing else: a closed buffer is one set."""
        envelope = self._port.receive_masks(timeout_s)
        if envelope is None:
            if self._clock() >= self._ask_again_at:
                _log.warning("waiting for the helper to unmask version %d", asked.version)
                self._ask(asked)
            return False
        try:
            masks = envelope.message()
        except DecodeError:
            return True
        if not isinstance(masks, Masks) or masks.request != asked.digest:
            return True  # an answer to whoever led before, asked twice
        if masks.refused is None and spec(masks.tensors) != {
            "masks/words": ("uint32", (asked.words,))
        }:
            return True
        self._asked = None
        with self._timed("fold"):
            effects = self.coordinator.on_masks(masks, self._clock())
        self._execute(effects, None)
        return True

    def _ask(self, request: UnmaskRequest) -> None:
        self._asked, self._ask_again_at = request, self._clock() + _ASK_AGAIN_S
        self._port.ask_helper(Envelope.of(request))

    def pause(self) -> None:
        """Make the open buffer durable, so that nothing is trained twice after a restart."""
        self._execute(self.coordinator.pause(), None)

    def _say_what_decides(self, evaluation: Evaluation) -> None:
        if not self._said_what_decides and self.coordinator.stopping.decides_on_test(evaluation):
            _log.warning(
                "target_accuracy and patience decide on the test examples here: task.validation "
                "takes a part of the training examples for that, a task's validation() brings one"
            )
        self._said_what_decides = True

    def _check_room(self) -> None:
        """Say what kept updates will take before anything is trained. Raises: UserError."""
        if self._experiment.aggregation.keep_updates:
            expected = self.coordinator.buffer.expected
            update = transforms.sent_spec(self._experiment.update or (), expected)
            kept = self._ledger.kept()
            _log.info(room_for_updates(self._experiment, self._ledger.folder, update, *kept))

    # ---- messages

    def _on_delivery(self, delivery: Delivery) -> None:
        envelope = delivery.envelope
        if delivery.is_event:
            self._on_event(envelope)
            return
        self.coordinator.hold_updates = self._prefetch.after(delivery)
        self._fetched_bytes = 0
        try:
            message = message_of(envelope, self._experiment, self._prefetch.largest)
        except Unusable as error:
            self._reject(delivery, error.reason, error.detail)
            return
        site = _sender(delivery) or getattr(message, "client", "")
        if site in self._experiment.residents:
            self.presence.saw(site)
        if isinstance(message, ClientUpdate):
            self._fetched_bytes = message.received_bytes
        if isinstance(message, Evaluation) and not self._ledger.takes_evaluation(
            message.version, message.worker
        ):
            self._reject(delivery, "evaluated")
            return
        # It may have been too late for a run that was about to end, was killed, and has gone on.
        before = self._ledger.reason_rejected(envelope.message_id, lambda: _sha256(envelope))
        if before in OF_THEIR_TIME:
            self._reject(delivery, before)
            return
        seen_in = self._seen_in(message)
        if seen_in == "buffer" and delivery.delivery_count == 0:
            # The same update in another message: held, it would only fill our hands; acked before
            # the first is recorded, it may be the last (the first can be dead-lettered meanwhile).
            self.pause()
            seen_in = "ledger"
        with self._timed("fold"):
            effects = self.coordinator.on_update(message, seen_in, self._clock())
        self._execute(effects, delivery)

    def _on_event(self, envelope: Envelope) -> None:
        try:
            event = envelope.message()
        except DecodeError:
            return
        if isinstance(event, Event) and event.run.run_id == self.coordinator.run.run_id:
            self.presence.hear(event)

    def _seen_in(self, message: FromWorker) -> Literal["ledger", "buffer"] | None:
        if not isinstance(message, ClientUpdate):
            return None
        open_turn = message.update_id in self.coordinator.turns.open
        if open_turn and message.turn > self._answered:
            return None  # a record closes the turn, so there is none: no need to ask the ledger
        if not open_turn:
            self._answered = max(self._answered, message.turn)
        if message.update_id in self._unacked:
            return "buffer"
        return "ledger" if self._ledger.seen(message.update_id) else None

    # ---- effects

    def _execute(self, effects: Iterable[Effect], delivery: Delivery | None) -> None:
        for effect in effects:
            self._do(effect, delivery)

    def _do(self, effect: Effect, delivery: Delivery | None) -> None:
        ledger, elapsed_s = self._ledger, self.coordinator.elapsed_s(self._clock())
        match effect:
            case CallAt(at):
                self.call_at = at
            case Hold(update_id):
                self._hold(update_id, _of(delivery))
            case Duplicate():
                again = _of(delivery).delivery_count > 0
                ledger.record_duplicate(None if again else self._traffic(_of(delivery)))
                self._port.ack([_of(delivery)])
            case Reject(_, reason):
                self._reject(_of(delivery), reason)
            case RecordFailure(failure, asked):
                again, sender = _of(delivery).delivery_count > 0, _sender(_of(delivery))
                ledger.record_failure(failure, asked, again, sender)
                self._port.ack([_of(delivery)])
                said = f"client {failure.client} failed: {one_line(failure.reason)}"
                _log.warning(said, extra={"kind": "failed"})
            case RecordEvaluation(evaluation, heard):
                ledger.record_evaluation(evaluation, elapsed_s, heard)
                self._say_what_decides(evaluation)
                self._port.ack([_of(delivery)])
            case RecordDropouts(assignments):
                ledger.record_dropouts(assignments)
            case MakeVersion():
                if effect.version == 0:
                    self._check_room()
                keep = self._experiment.aggregation.keep_versions
                with self._timed("commit"):
                    ledger.make_version(effect, self._unacked.sizes(), elapsed_s, keep)
                self._settle()
                self._progress.version(effect.version, effect.closed_by, *self._standing())
            case SaveBuffer():
                ledger.save_buffer(effect, self._unacked.sizes(), elapsed_s)
                self._settle()
            case Unmask(request):
                ledger.check_lead()
                self._ask(request)
            case Publish(model):
                # A model that is published again follows no transaction that would notice.
                ledger.check_lead()
                with self._timed("publish"):
                    self._publish(model)
            case Assign(assignments, expires_s):
                self._port.assign([Envelope.of(a) for a in assignments], expires_s)
            case Finish(status, detail, unused):
                ledger.finish(status, detail, unused, self._unacked.sizes(), elapsed_s)
                self._settle()
                self.outcome = status
                self._progress.end(status, self.coordinator.version, *self._standing())

    def _standing(self) -> tuple[int, Evaluation | None]:
        return self.coordinator.updates, self.coordinator.evaluated

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._on_timing(stage, time.perf_counter() - started)

    def _hold(self, update_id: str, delivery: Delivery) -> None:
        if self._ledger.keeps_updates and update_id not in self._unacked:
            self._ledger.keep_update(update_id, delivery.envelope.body)
        self._unacked.take(update_id, delivery)

    def _settle(self) -> None:
        self._port.ack(self._unacked.release())

    def _reject(self, delivery: Delivery, reason: str, detail: str = "") -> None:
        envelope = delivery.envelope
        again = delivery.delivery_count > 0
        sha256, sender = _sha256(envelope), _sender(delivery)
        self._ledger.record_rejection(
            sha256, envelope.message_id, reason, again, sender, self._traffic(delivery)
        )
        if reason in OF_THEIR_TIME:
            # Nothing is wrong with it, somebody was slow: no copy for a person to look at.
            self._port.ack([delivery])
        else:
            self._port.reject(delivery, reason)
            of = f" of {one_line(sender)}" if sender else ""
            said = f"rejected a message{of} ({reason}: {detail or REASONS[reason]})"
            _log.warning(said, extra={"kind": f"{reason}{of}", "every_s": _SAID_EVERY_S})

    def _traffic(self, delivery: Delivery) -> Traffic:
        """What the message in our hands cost, with the models that its sender says it fetched."""
        return Traffic(1, delivery.envelope.size, self._fetched_bytes)

    def _publish(self, model: GlobalModel) -> None:
        envelope = Envelope.of(model)
        if model.asks_for_weights:
            _log.info("waiting for an evaluator to make the weights of version 0")
        else:
            self._prefetch.fit(envelope)
        if model.final and self._experiment.evaluation.every_updates:
            _log.info(f"version {model.version} is the last; waiting for its evaluation")
        self._port.publish_model(envelope)


def _sha256(envelope: Envelope) -> str:
    return envelope.too_large or hashlib.sha256(envelope.body).hexdigest()


def _sender(delivery: Delivery) -> str:
    """Whom the broker vouches for; empty where it does not."""
    return delivery.envelope.user_id or ""


def _of(delivery: Delivery | None) -> Delivery:
    assert delivery is not None, "this effect answers a delivery"
    return delivery
