"""The aggregator as a service: drives the coordinator from a port, executes its effects.

Order is everything here: weights on disk, then the ledger's transaction, then the acks, then the
publish. A crash between any two of these costs a redelivery and nothing else.

    receive ─> decode ─> seen before? ─> coordinator ─> effects ─┬─> ledger ─> ack
                 └─> undecodable: ledger, copy to rejected, ack   └─> publish, assign
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from fluffle.aggregator.coordinator.admission import OF_THEIR_TIME, REASONS
from fluffle.aggregator.coordinator.coordinator import Coordinator
from fluffle.aggregator.coordinator.effects import (
    Assign,
    CallAt,
    Checkpoint,
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
)
from fluffle.aggregator.disk_space import room_for_updates
from fluffle.aggregator.intake import Unusable, message_of
from fluffle.aggregator.ledger.privacy import require_accounting
from fluffle.aggregator.ledger.reader import standing
from fluffle.aggregator.ledger.writer import Ledger, StaleLeader
from fluffle.aggregator.rate_limited_log import Complaints
from fluffle.aggregator.strategies.base import asks_of
from fluffle.aggregator.strategies.custom import keep_code
from fluffle.aggregator.strategies.registry import make_strategy, protected
from fluffle.aggregator.unacked import Unacked
from fluffle.broker import AggregatorPort, Closed, Delivery, Envelope, LeadershipLost
from fluffle.schemas import (
    ClientUpdate,
    DecodeError,
    Event,
    Experiment,
    GlobalModel,
    Plan,
    Run,
    Tensors,
    UserError,
    transforms,
)
from fluffle.schemas.codec import MAX_MESSAGE_BYTES, one_line
from fluffle.schemas.messages import FromWorker
from fluffle.schemas.user_code import is_custom

#: Updates that may be in our hands at once, by number and by bytes.
MAX_PREFETCH = 64
MAX_PREFETCH_BYTES = 256 * 1024**2
#: No update is longer than this many models (SCAFFOLD sends two), and a head and a table.
MOST_MODELS, HEAD_BYTES = 4, 4 * 1024**2
#: Reasons that tell of nothing wrong: somebody was slow.
ORDINARY = ("late", "too_stale", "repeated")
#: A message that came back this often may be what kills us: take what follows one by one.
SUSPICIOUS = 3
#: How often the loop looks up from waiting for messages.
_LOOK_UP_S = 0.5
#: Who is told to stop waits so long for a broker that takes nothing.
_LEAVE_S = 10.0


class AggregatorService:
    """Leads one run over one port until it is finished or stopped."""

    def __init__(
        self,
        experiment: Experiment,
        port: AggregatorPort,
        folder: Path,
        *,
        run_id: str,
        initial: Tensors | None = None,
        code: Path | None = None,
        clock_name: str = "real",
        clock: Callable[[], float] = time.monotonic,
        on_status: Callable[[str], None] = lambda text: None,
        on_timing: Callable[[str, float], None] = lambda stage, seconds: None,
    ) -> None:
        """
        code: the folder of a strategy from a file, by default the present one.
        clock: seconds, from any beginning.
        clock_name: "real", or "virtual" for a run that starts over rather than resumes: it leaves
            out what only the loss of power would miss.
        on_timing: is told how long each fold, commit and publish took.
        """
        self.experiment = experiment
        self.folder = folder
        self.coordinator: Coordinator | None = None
        self._port = port
        self._run_id = run_id
        self._code = code or Path()
        self._initial = initial
        self._clock_name = clock_name
        self._clock = clock
        self._say = on_status
        self._on_timing = on_timing
        self._complaints = Complaints(on_status, clock)
        self._stop = threading.Event()
        self._at_work = False
        #: How the run stood when this aggregator came: whoever stands by has seen no end.
        self._found = standing(folder)
        self._unacked = Unacked()
        #: When the coordinator wants to be called, by the service's clock.
        self.call_at = 0.0
        #: How the run ended; None while it goes on.
        self.outcome: str | None = None
        #: Turns up to this may have been answered before they were issued: after a crash they are
        #: issued again, and what the old ones brought is on its way or recorded.
        self._answered = -1
        self._prefetch = 0
        #: One at a time until we know how long an update is.
        self._normal_prefetch = 1
        #: Of a message, in bytes; until there is a model anything may come.
        self._largest = MAX_MESSAGE_BYTES

    def stop(self) -> None:
        """Stop soon, after a partial checkpoint. From any thread, or a signal handler."""
        self._stop.set()
        if self._at_work:
            timer = threading.Timer(_LEAVE_S, self._give_up)
            timer.daemon = True
            timer.start()

    def _give_up(self) -> None:
        if self._at_work:
            self._port.close()

    def run(self) -> str:
        """Lead until the end: "finished", "failed", "aborted", or "stopped" (resume later).

        Raises: UserError (another leader took over, disk full, another experiment's folder, …).
        """
        self._at_work = True
        try:
            if not self._lead():
                return "stopped"
            self.begin()
            try:
                while self.outcome is None and not self._stop.is_set():
                    self.pump(_LOOK_UP_S)
                self.pause()
            finally:
                self.close()
        except (LeadershipLost, StaleLeader) as error:
            raise UserError(
                f"another aggregator took over the run in {self.folder} ({error}): "
                "this one has stopped and nothing is lost"
            ) from error
        except Closed:
            if not self._stop.is_set():
                raise
            self._say("stopped before the broker had taken what was sent; it is sent again")
        finally:
            self._at_work = False
        return self.outcome or "stopped"

    # ---- the pieces of ``run``, for who drives it step by step

    def begin(self) -> None:
        """Enter the run, or resume it. The port has to lead already. Raises: UserError."""
        durable = self._clock_name == "real"
        self._ledger = Ledger(self.folder, durable, on_locked=self._wait_for_ledger)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def pump(self, timeout_s: float) -> bool:
        """Do one thing: the timer if it is due, else a message; False if none came in time."""
        if self.coordinator is None or self.outcome is not None:
            return False
        self._complaints.flush()
        now = self._clock()
        if now >= self.call_at:
            self._execute(self.coordinator.on_timer(now), None)
            return True
        delivery = self._port.receive(min(self.call_at - now, timeout_s))
        if delivery is not None:
            self._on_delivery(delivery)
        return delivery is not None

    def pause(self) -> None:
        """Make the open buffer durable, so that nothing is trained twice after a restart."""
        if self.coordinator is not None and self.outcome is None:
            self._execute(self.coordinator.pause(), None)

    def close(self) -> None:
        """Let go of the ledger."""
        self._complaints.flush(force=True)
        self._ledger.close()

    # ---- start

    def _lead(self) -> bool:
        said = False
        while not self._stop.is_set():
            if self._port.lead(timeout_s=1.0):
                return True
            if not said:
                self._say("another aggregator leads here; waiting to take over")
            said = True
        return False

    def _wait_for_ledger(self) -> None:
        line = f"another process has locked the ledger in {self.folder}"
        if self._stop.is_set():
            raise UserError(f"{line}: this aggregator has stopped waiting, and nothing is lost")
        self._say(f"{line}, perhaps a leader that was stopped; waiting for it to go on or to end")

    def _start(self) -> None:
        ledger, experiment = self._ledger, self.experiment
        started = int(time.time() * 1000)
        if experiment.privacy is not None:
            require_accounting()  # before anything is trained
        if not ledger.open_run(experiment, self._run_id, started, self._clock_name):
            self.outcome = ledger.meta["status"]
            return
        stands = ledger.meta["epoch"], ledger.meta["status"]
        if stands[1] in ("aborted", "failed") and stands != self._found:
            # It ended while we waited: for it to go on is for a person to say, by a new start.
            self.outcome = stands[1]
            return
        run_id = ledger.meta["run_id"]
        newest = self._port.latest_model()
        other = newest is not None and newest.headers.get("run_id") != run_id
        ledger.lead(int(newest.headers.get("run_started", 0)) if newest and other else None)
        run = Run(run_id=run_id, run_started=int(ledger.meta["run_started"]), epoch=ledger.epoch)
        checkpoint = ledger.load()
        ((self._answered,),) = ledger.query("SELECT COALESCE(MAX(turn), -1) FROM updates")
        self._port.purge_assignments()
        strategy = make_strategy(experiment, self._code)
        strategy = protected(strategy, experiment, ledger.meta.get("noise_key"))
        if Plan.of(experiment, strategy.sends, asks_of(strategy)).keeps_state:
            checkpoint.states = ledger.client_states()
        self.coordinator = Coordinator(experiment, strategy, run, checkpoint)
        if is_custom(experiment.aggregation.strategy):
            keep_code(experiment.aggregation.strategy, self._code, self.folder)
        self._resume_text(checkpoint)
        if checkpoint.state is not None:
            self._check_room()
        self._consume(1)
        self._execute(self.coordinator.start(self._clock(), self._initial), None)

    def _resume_text(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state is not None:
            buffered = f" and {len(checkpoint.buffered)} updates" if checkpoint.buffered else ""
            self._say(f"resuming at version {checkpoint.version}{buffered}")

    def _check_room(self) -> None:
        """Say what kept updates will take before anything is trained. Raises: UserError."""
        assert self.coordinator is not None
        if self.experiment.aggregation.keep_updates:
            expected = self.coordinator.buffer.expected
            update = transforms.sent_spec(self.experiment.update or (), expected)
            kept = self._ledger.kept()
            self._say(room_for_updates(self.experiment, self.folder, update, *kept))

    # ---- messages

    def _on_delivery(self, delivery: Delivery) -> None:
        assert self.coordinator is not None
        envelope = delivery.envelope
        if delivery.is_event:
            self._on_event(envelope)
            return
        self._consume(1 if delivery.delivery_count >= SUSPICIOUS else self._normal_prefetch)
        try:
            message = message_of(envelope, self.experiment, self._largest)
        except Unusable as error:
            self._reject(delivery, error.reason, error.detail)
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
        assert self.coordinator is not None
        try:
            event = envelope.message()
        except DecodeError:
            return
        if isinstance(event, Event):
            self.coordinator.on_event(event, self._clock())

    def _seen_in(self, message: FromWorker) -> Literal["ledger", "buffer"] | None:
        if not isinstance(message, ClientUpdate):
            return None
        assert self.coordinator is not None
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
        assert self.coordinator is not None
        ledger, elapsed_s = self._ledger, self.coordinator.elapsed_s(self._clock())
        match effect:
            case CallAt(at):
                self.call_at = at
            case Hold(update_id):
                self._hold(update_id, _of(delivery))
            case Duplicate():
                ledger.record_duplicate()
                self._port.ack([_of(delivery)])
            case Reject(_, reason):
                self._reject(_of(delivery), reason)
            case RecordFailure(failure):
                ledger.record_failure(failure)
                self._port.ack([_of(delivery)])
                said = f"client {failure.client} failed: {one_line(failure.reason)}"
                self._complaints.add("failed", said)
            case RecordEvaluation(evaluation):
                ledger.record_evaluation(evaluation, elapsed_s)
                self._port.ack([_of(delivery)])
            case RecordDropouts(assignments):
                ledger.record_dropouts(assignments)
            case MakeVersion():
                if effect.version == 0:
                    self._check_room()
                keep = self.experiment.aggregation.keep_versions
                with self._timed("commit"):
                    ledger.make_version(effect, self._unacked.sizes(), elapsed_s, keep)
                self._settle()
            case SaveBuffer():
                ledger.save_buffer(effect, self._unacked.sizes(), elapsed_s)
                self._settle()
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
        self._ledger.record_rejection(_sha256(envelope), envelope.message_id, reason, again)
        self._port.reject(delivery, reason)
        if reason not in ORDINARY:
            sender = f" of {envelope.user_id}" if envelope.user_id else ""
            what = detail or REASONS[reason]
            self._complaints.add(reason, f"rejected a message{sender} ({reason}: {what})")

    def _publish(self, model: GlobalModel) -> None:
        envelope = Envelope.of(model)
        if model.asks_for_weights:
            self._say("waiting for an evaluator to make the weights of version 0")
        else:
            fitting = MAX_PREFETCH_BYTES // envelope.size
            self._normal_prefetch = max(2, min(MAX_PREFETCH, fitting))
            self._largest = MOST_MODELS * envelope.size + HEAD_BYTES
        if model.final and self.experiment.evaluation.every_updates:
            self._say(f"version {model.version} is the last; waiting for its evaluation")
        self._port.publish_model(envelope)

    def _consume(self, prefetch: int) -> None:
        """Updates in hand at once; with one at a time each is recorded before the next comes."""
        assert self.coordinator is not None
        self.coordinator.hold_updates = max(1, prefetch // 2)
        if prefetch != self._prefetch:
            self._prefetch = prefetch
            self._port.consume(prefetch, self._largest)


def _sha256(envelope: Envelope) -> str:
    return envelope.too_large or hashlib.sha256(envelope.body).hexdigest()


def _of(delivery: Delivery | None) -> Delivery:
    assert delivery is not None, "this effect answers a delivery"
    return delivery
