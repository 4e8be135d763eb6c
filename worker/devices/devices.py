"""A client's turn on its device: when it starts, how long each part takes, whether it arrives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from fluffle.schemas import Plan
from fluffle.schemas.device_tables import rows_of
from fluffle.schemas.experiment import DevicesTable
from fluffle.worker.devices.availability import next_start
from fluffle.worker.devices.draws import delay, generator

LostAt = Literal["before_training", "after_training", "upload"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What one device can do."""

    seconds_per_example: float = 0.0
    latency_s: float = 0.0
    download_bytes_per_s: float = float("inf")
    upload_bytes_per_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class DeviceOutcome:
    """What becomes of one turn, but for when it starts and how much travels."""

    hardware: Hardware
    #: Local epochs that the client really does.
    epochs: int
    #: Seconds on top of what the hardware takes.
    delay_s: float
    #: Where the turn is lost; None if its update arrives.
    lost_at: LostAt | None
    #: Seconds that the client rests afterwards.
    pause_s: float

    def download_s(self, size: int) -> float:
        """Seconds to fetch a model of ``size`` bytes."""
        return self.hardware.latency_s + size / self.hardware.download_bytes_per_s

    def train_s(self, examples: int) -> float:
        """Seconds of local training on ``examples`` examples, the delay included."""
        return self.delay_s + examples * self.epochs * self.hardware.seconds_per_example

    def upload_s(self, size: int) -> float:
        """Seconds to send an update of ``size`` bytes."""
        return self.hardware.latency_s + size / self.hardware.upload_bytes_per_s


class Devices:
    """All devices of a federation: a pure function of the plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._table = (plan.devices or DevicesTable()).with_preset
        rows = rows_of(self._table.hardware) if self._table.hardware else []
        self._rows = [Hardware(*row) for row in rows]
        #: (client, seconds since the run began) -> when it can start. Never before.
        self.next_start = next_start(self._table, plan.seed)
        self._of_client = lru_cache(maxsize=100_000)(self._draw_client)

    def outcome(self, client: str, turn: int, lost_before: int = 0) -> DeviceOutcome:
        """What becomes of this turn, which was lost so many times before (and given again)."""
        table, seed, number = self._table, self._plan.seed, int(client)
        hardware, client_delay_s = self._of_client(number)
        delay_s = client_delay_s
        if table.delay and table.delay_of != "client":
            rng = generator("delay", seed, number, turn)
            delay_s = delay(rng, table.delay, table.delay_s or 0.0, table.delay_shape)
        return DeviceOutcome(
            hardware,
            self._epochs(number, turn),
            delay_s,
            self._lost_at(number, turn, lost_before),
            pause_s(self._plan, client, turn),
        )

    def _draw_client(self, client: int) -> tuple[Hardware, float]:
        table, seed = self._table, self._plan.seed
        delay_s = 0.0
        if table.delay and table.delay_of == "client":
            rng = generator("delay", seed, client)
            delay_s = delay(rng, table.delay, table.delay_s or 0.0, table.delay_shape)
        if self._rows:
            rng = generator("hardware", seed, client)
            return self._rows[int(rng.integers(len(self._rows)))], delay_s
        return Hardware(
            table.seconds_per_example or 0.0,
            table.latency_s or 0.0,
            table.download_bytes_per_s or float("inf"),
            table.upload_bytes_per_s or float("inf"),
        ), delay_s

    def _epochs(self, client: int, turn: int) -> int:
        """All epochs, or uniformly 1 to all for the share ``stragglers`` of turns (FedProx)."""
        epochs = self._plan.training.epochs
        if not self._table.stragglers:
            return epochs
        rng = generator("epochs", self._plan.seed, client, turn)
        is_straggler = rng.random() < self._table.stragglers
        return int(rng.integers(1, epochs + 1)) if is_straggler else epochs

    def _lost_at(self, client: int, turn: int, lost_before: int) -> LostAt | None:
        if not self._table.dropout:
            return None
        again = (lost_before,) if lost_before else ()
        rng = generator("dropout", self._plan.seed, client, turn, *again)
        if rng.random() >= self._table.dropout:
            return None
        places = get_args(LostAt)
        where = self._table.dropout_at or "any"
        chosen: LostAt = places[int(rng.integers(len(places)))] if where == "any" else where
        return chosen


def pause_s(plan: Plan, client: str, turn: int) -> float:
    """Seconds that a pooled client rests after this turn; a resident client never does."""
    low, high = plan.pause_s
    if not high or not client.isdecimal():
        return 0.0
    return float(generator("pause", plan.seed, int(client), turn).uniform(low, high))
