"""A worker as a service: slots that take turns, train, and send what comes of it.

One slot is one thread with one compiled trainer, reused for every client. A turn is acked only
after its answer is confirmed, so a worker that dies gives its turns back. Models are kept as
bytes and decoded when a turn starts. A worker that leaves waits a little for its last confirms, and
then gives up (``fluffle.worker.services.shutdown``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from fluffle.broker import Closed, Envelope, WorkerPort
from fluffle.schemas import Event, GlobalModel, Message, Run
from fluffle.schemas.messages import order
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.journal import Journal
from fluffle.worker.services.returned import ReturnedTurns
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.services.simulated import describes_devices
from fluffle.worker.services.slot import Slot, SlotContext

_log = logging.getLogger(__name__)

_LOOK_UP_S = 0.5


class WorkerService:
    """Trains clients in ``slots`` threads until the run is over or it is told to stop."""

    def __init__(
        self,
        port: WorkerPort,
        worker_id: str,
        slots: int,
        *,
        stay: bool = False,
        journal: Journal | None = None,
        states: ClientStates | None = None,
        simulate_devices: bool = False,
        on_model: Callable[[GlobalModel, int], None] = lambda model, size: None,
        on_turn: Callable[[Message | None], None] = lambda answer: None,
    ) -> None:
        """
        stay: wait for the next run when one is over.
        journal: is told what is sent, before and after.
        states: where clients keep what they need for their next turn; its owner closes it.
        simulate_devices: turns live the devices of the plan: its delays, losses and lies. A run's
            own workers do; otherwise no plan can make a worker do so.
        on_model: is told of every model that arrives, and its size in bytes.
        on_turn: is told, by slots, what a turn brought; None where it was for nobody any more.
        """
        self.worker_id = worker_id
        self._port = port
        self._slots = slots
        self._stay = stay
        self._journal = journal or Journal()
        self._states = states or ClientStates()
        self._simulate_devices = simulate_devices
        self._on_model = on_model
        self._on_turn = on_turn
        self._returned = ReturnedTurns()
        self._shutdown = Shutdown(port)
        self._received = 0
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def stop(self) -> None:
        """Stop when the trainings under way are sent. From any thread, or a signal handler."""
        self._shutdown.stop()

    def run(self) -> None:
        """Work until the run is over, or stopped. Raises: UserError, Closed."""
        threads = [
            threading.Thread(target=self._slot, name=f"slot-{i}", daemon=True)
            for i in range(self._slots)
        ]
        for thread in threads:
            thread.start()
        try:
            self._watch_models()
        except Closed:
            if not self._shutdown.told.is_set():
                raise
        finally:
            self._shutdown.stop()
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _watch_models(self) -> None:
        """Count what arrives, and leave when the run that we worked for is over."""
        newest, joined = None, None
        while not self._shutdown.told.is_set():
            envelope = self._port.wait_model(newest, _LOOK_UP_S)
            if envelope is None:
                continue
            with self._lock:
                self._received += envelope.size
            model = envelope.model()
            if model is None:
                self._port.forget_model(envelope)
                _log.warning("passed over a message that is no model, or of another release")
                continue
            newest = order(envelope.headers)
            self._on_model(model, envelope.size)
            if not model.final and joined != model.run:
                self._join(model, joined)
                joined = model.run
            elif model.final and joined is not None:
                self._emit(Event(run=model.run, kind="left", worker=self.worker_id))
                joined = None
                _log.info(f"run {model.run.run_id} is over{'; waiting for the next' * self._stay}")
                if not self._stay:
                    return

    def _join(self, model: GlobalModel, before: Run | None) -> None:
        event = Event(run=model.run, kind="joined", worker=self.worker_id, slots=self._slots)
        self._emit(event)
        _log.info("%s joined run %s with %d slots", self.worker_id, model.run.run_id, self._slots)
        known = before is not None and before.run_id == model.run.run_id
        if not known and not self._simulate_devices and describes_devices(model.plan):
            _log.info(
                f"run {model.run.run_id} describes devices ([devices]), and this worker does not "
                "simulate them: it trains without their delays, losses and lies "
                "(--simulate-devices)"
            )

    def _emit(self, event: Event) -> None:
        self._port.emit(Envelope.of(event))

    # ---- one slot

    def _slot(self) -> None:
        try:
            Slot(
                SlotContext(
                    worker_id=self.worker_id,
                    port=self._port,
                    shutdown=self._shutdown,
                    states=self._states,
                    journal=self._journal,
                    returned=self._returned,
                    on_turn=self._on_turn,
                    take_received=self._take_received,
                    simulate_devices=self._simulate_devices,
                )
            ).run()
        except Closed:
            if not self._shutdown.told.is_set():
                self._error = Closed("the connection was closed")
        except BaseException as error:
            self._error = error
        finally:
            self._shutdown.stop()

    def _take_received(self) -> int:
        """Bytes of models received since somebody asked last."""
        with self._lock:
            received, self._received = self._received, 0
        return received
