"""The aggregator as a service: waits until it may lead, enters the run, and leads it to its end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fluffle.aggregator.coordinator.coordinator import Coordinator
from fluffle.aggregator.coordinator.selection import Arrival, Selector
from fluffle.aggregator.leader import Leader
from fluffle.aggregator.ledger.damage import blamed
from fluffle.aggregator.ledger.disk import cannot_write
from fluffle.aggregator.ledger.privacy import INITIAL_CAVEAT, noise_of, require_accounting
from fluffle.aggregator.ledger.reader import standing
from fluffle.aggregator.ledger.record import write_record
from fluffle.aggregator.ledger.sums import Traffic
from fluffle.aggregator.ledger.writer import Ledger, StaleLeader
from fluffle.aggregator.presence import Presence
from fluffle.aggregator.selections.registry import make_selection
from fluffle.aggregator.strategies.base import asks_of
from fluffle.aggregator.strategies.custom import keep_code
from fluffle.aggregator.strategies.registry import make_strategy, protected
from fluffle.aggregator.triggers.registry import make_trigger
from fluffle.broker import AggregatorPort, Closed, LeadershipLost
from fluffle.schemas import Experiment, Plan, Run, Tensors, UserError
from fluffle.schemas.messages import order
from fluffle.schemas.user_code import is_custom

_log = logging.getLogger(__name__)

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
        arrival: Arrival | None = None,
        on_timing: Callable[[str, float], None] = lambda stage, seconds: None,
        helper_key: str | None = None,
    ) -> None:
        """
        code: the folder of a strategy from a file, by default the present one.
        clock: seconds, from any beginning.
        clock_name: "real", or "virtual" for a run that starts over rather than resumes: it leaves
            out what only the loss of power would miss.
        arrival: (client, now) -> the first time from now on at which a pooled client is there, by
            the same clock; None where nobody knows, and turns go to any.
        on_timing: is told how long each fold, commit and publish took.
        helper_key: the public key of the run's own helper of secure aggregation, if it has one.
        """
        self.experiment = experiment
        self.folder = folder
        self._port = port
        self._run_id = run_id
        self._code = code or Path()
        self._initial = initial
        self._clock_name = clock_name
        self._clock = clock
        self._arrival = arrival
        self._on_timing = on_timing
        self._helper_key = helper_key
        self._stop = threading.Event()
        self._at_work = False
        #: How the run stood when this aggregator came: whoever stands by has seen no end.
        self._found = standing(folder)
        self._leader: Leader | None = None
        #: How a run had ended that this aggregator found.
        self._ended: str | None = None

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
            _log.warning("stopped before the broker had taken what was sent; it is sent again")
        finally:
            self._at_work = False
        return self.outcome or "stopped"

    # ---- the pieces of ``run``, for who drives it step by step

    @property
    def coordinator(self) -> Coordinator | None:
        """What decides; None until this aggregator leads."""
        return self._leader.coordinator if self._leader else None

    @property
    def presence(self) -> Presence | None:
        """Who is here, to be shown; None until this aggregator leads."""
        return self._leader.presence if self._leader else None

    @property
    def call_at(self) -> float:
        """When the coordinator wants to be called, by the service's clock."""
        return self._leader.call_at if self._leader else 0.0

    @property
    def outcome(self) -> str | None:
        """How the run ended; None while it goes on."""
        return self._leader.outcome if self._leader else self._ended

    def begin(self) -> None:
        """Enter the run, or resume it. The port has to lead already. Raises: UserError."""
        durable = self._clock_name == "real"
        self._ledger = Ledger(self.folder, durable, on_locked=self._wait_for_ledger)
        try:
            with blamed(self.folder):
                self._start()
        except BaseException:
            self.close()
            raise

    def pump(self, timeout_s: float) -> bool:
        """Do one thing: the timer if it is due, else a message; False if none came in time."""
        if self._leader is None or self.outcome is not None:
            return False
        return self._leader.pump(timeout_s)

    def pause(self) -> None:
        """Make the open buffer durable, so that nothing is trained twice after a restart."""
        if self._leader is not None and self.outcome is None:
            self._leader.pause()

    def record_lost(self, where: str, bytes_up: int, bytes_down: int) -> None:
        """What travelled for a turn that a simulated device lost; only a simulator knows."""
        if self._leader is not None and self.outcome is None:
            self._ledger.record_lost(where, Traffic(1, bytes_up, bytes_down))

    def close(self) -> None:
        """Let go of the ledger."""
        self._ledger.close()

    # ---- start

    def _lead(self) -> bool:
        said = False
        while not self._stop.is_set():
            if self._port.lead(timeout_s=1.0):
                return True
            if not said:
                _log.info("another aggregator leads here; waiting to take over")
            said = True
        return False

    def _wait_for_ledger(self) -> None:
        line = f"another process has locked the ledger in {self.folder}"
        if self._stop.is_set():
            raise UserError(f"{line}: this aggregator has stopped waiting, and nothing is lost")
        _log.warning(
            "%s, perhaps a leader that was stopped; waiting for it to go on or to end", line
        )

    def _start(self) -> None:
        ledger, experiment = self._ledger, self.experiment
        started = int(time.time() * 1000)
        if experiment.privacy is not None:
            require_accounting()  # before anything is trained
            if self._initial is not None:
                _log.warning(f"privacy: {INITIAL_CAVEAT}")
        if not ledger.open_run(experiment, self._run_id, started, self._clock_name, self._code):
            self._ended = ledger.meta["status"]
            return
        stands = ledger.meta["epoch"], ledger.meta["status"]
        if stands[1] in ("aborted", "failed") and stands != self._found:
            # It ended while we waited: for it to go on is for a person to say, by a new start.
            self._ended = stands[1]
            return
        self._leader = self._lead_run()
        try:
            write_record(self.folder, experiment)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._leader.start(self._initial)

    def _lead_run(self) -> Leader:
        ledger, experiment = self._ledger, self.experiment
        run_id = ledger.meta["run_id"]
        self._begin_epoch(run_id)
        run = Run(run_id=run_id, run_started=int(ledger.meta["run_started"]), epoch=ledger.epoch)
        checkpoint = ledger.load()
        self._port.purge_assignments()
        strategy = make_strategy(experiment, self._code)
        strategy = protected(strategy, experiment, *noise_of(ledger.meta))
        if Plan.of(experiment, strategy.sends, asks_of(strategy)).keeps_state:
            checkpoint.states = ledger.client_states()
        of_files = (
            experiment.aggregation.strategy,
            experiment.participation.selection,
            experiment.aggregation.trigger,
        )
        for name in of_files:
            if is_custom(name):
                keep_code(name, self._code, self.folder)
        if experiment.samples_secretly:
            checkpoint.sampling_key = bytes.fromhex(ledger.meta["sampling_key"])
        if checkpoint.state is not None:
            buffered = f" and {len(checkpoint.buffered)} updates" if checkpoint.buffered else ""
            _log.info(f"resuming at version {checkpoint.version}{buffered}")
        selector = self._selector()
        if selector.learns:
            checkpoint.history = ledger.history()
        return Leader(
            Coordinator(
                experiment,
                strategy,
                run,
                checkpoint,
                selector=selector,
                trigger=make_trigger(experiment, self._code),
                helper_key=self._helper_key,
            ),
            ledger,
            self._port,
            clock=self._clock,
            on_timing=self._on_timing,
        )

    def _selector(self) -> Selector:
        """The run's selection, which has observed nothing yet. Raises: UserError."""
        experiment, devices = self.experiment, self.experiment.devices
        if self._arrival is None and devices is not None and devices.effective("availability"):
            _log.info(
                "nobody here knows when pooled clients are available (devices.availability): turns "
                "go to any, and wait with their client; --clock virtual chooses among the available"
            )
        return Selector(
            experiment,
            make_selection(experiment, self._code),
            self._arrival,
            # Under the virtual clock a slot works for one client alone, its network included.
            lambda fold: fold.slot_s if self._clock_name == "virtual" else fold.train_s,
        )

    def _begin_epoch(self, run_id: str) -> None:
        """Beyond what this broker has seen, or workers would take us for the past.

        Raises: UserError where it has seen a version that the ledger does not know.
        """
        newest = self._port.latest_model()
        if newest is None or newest.model() is None:
            self._ledger.lead()
        elif newest.headers.get("run_id") != run_id:
            self._ledger.lead(newer_than=int(newest.headers.get("run_started", 0)))
        else:
            _, epoch, version, _ = order(newest.headers)
            latest = self._ledger.latest_version()
            if version > max(0, latest):  # a call for version 0 comes before it is there
                raise UserError(
                    f"the broker has version {version} of run {run_id}, and the ledger in "
                    f"{self.folder} ends with {latest}: it was restored from an older copy. "
                    "Restore the newest copy of the run folder, or start a run of its own with "
                    "another --out; nothing was changed"
                )
            self._ledger.lead(epoch_above=epoch)
