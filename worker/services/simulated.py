"""A turn as the client's simulated device lives it: what a run attaches to its turns.

The device decides when the turn starts, how long each part takes and where it is lost, and whether
the client lies. Production turns know nothing of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from functools import partial
from typing import Any

from fluffle.schemas import Assignment, ClientUpdate, Plan
from fluffle.schemas.experiment import DevicesTable
from fluffle.worker.devices import DeviceOutcome, Devices, as_sent
from fluffle.worker.services.answers import payload_bytes
from fluffle.worker.services.outgoing import upload_bytes
from fluffle.worker.services.turn import (
    Available,
    Begin,
    Step,
    Stopped,
    Train,
    Turn,
    Wait,
    newest_model,
)
from fluffle.worker.training.per_plan import PerPlan


class SimulatedDevices:
    """The devices of the plan that a turn's model brings. One for each thread."""

    def __init__(self) -> None:
        self._devices = PerPlan(Devices)
        #: How often turns of this version were lost: a deterministic cohort gives them again, and
        #: the same draw would lose them for ever.
        self._lost: Counter[str] = Counter()
        self._lost_for: tuple[str, int] | None = None

    def __call__(self, turn: Turn, assignment: Assignment) -> Turn:
        """The same turn, on the client's device."""
        reply: Any = None
        while True:
            try:
                step = turn.send(reply)
            except StopIteration:
                return
            if isinstance(step, Train):
                reply = yield from self._train(step)
                if reply is None:
                    self._lost[assignment.assignment_id] += 1
            else:
                reply = yield step

    def _lost_before(self, assignment: Assignment) -> int:
        version = assignment.run.run_id, assignment.version
        if version != self._lost_for:
            self._lost.clear()
            self._lost_for = version
        return self._lost[assignment.assignment_id]

    def _train(
        self, step: Train
    ) -> Generator[Step, Any, ClientUpdate | BaseException | Stopped | None]:
        """``Train``'s reply, or nothing where the device loses the turn."""
        client, plan = step.assignment.client, step.model.plan
        try:
            devices = self._devices.of(plan)
            lost_before = self._lost_before(step.assignment)
            outcome = devices.outcome(client, step.assignment.turn, lost_before)
        except Exception as error:  # numbers without bounds
            return error
        if not (yield Available(partial(devices.next_start, client))):
            return None
        model = yield from newest_model(step.assignment)  # a newer one may have come meanwhile
        if model is None:
            return None
        yield Begin(model, outcome)
        yield Wait(outcome.download_s(payload_bytes(model.tensors)))
        if outcome.lost_at == "before_training":
            return None
        result: ClientUpdate | BaseException | Stopped | None = yield Train(
            step.assignment,
            model,
            epochs=outcome.epochs,
            takes_s=outcome.train_s,
            as_sent=partial(as_sent, plan, client),
            needed=outcome.lost_at is None,
        )
        if isinstance(result, Stopped):
            return result
        if isinstance(result, BaseException):
            yield Wait(0.0)
            return result
        if outcome.lost_at == "after_training":
            return None
        sent = (
            upload_bytes(plan, model.tensors) if result is None else payload_bytes(result.tensors)
        )
        yield Wait(outcome.upload_s(sent))
        return result if outcome.lost_at is None else None


def describes_devices(plan: Plan) -> bool:
    """Whether turns on this plan's devices are other than turns without."""
    return plan.devices not in (None, DevicesTable())


def end_of(outcome: DeviceOutcome, download: int, upload: int, examples: int, at: float) -> float:
    """When a device that starts at this time is free again; sizes in bytes."""
    trained = at + outcome.download_s(download) + outcome.train_s(examples)
    return trained + outcome.upload_s(upload) + outcome.pause_s
