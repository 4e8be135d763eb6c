"""What is compared: eight methods, six settings of each, on one grid of devices and data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Settings = dict[str, Any]

CLIENTS = 100
#: Counted updates after which a run is given up, and virtual minutes.
MOST_UPDATES, MOST_MINUTES = 1500, 20.0
#: Buffers of the methods that have one.
K = 10

COMMON: dict[str, Any] = {
    "experiment": {"target_accuracy": 0.8, "max_minutes": MOST_MINUTES},
    "task": {"name": "digits-lr", "clients": CLIENTS, "validation": 0.0},
    "training": {"epochs": 1, "batch_size": 5, "optimizer": "sgd"},
    "aggregation": {"deadline_s": 100_000.0},
    "evaluation": {"every_updates": K},
}

#: All have a mean of a second, and no client ever drops out.
SPEEDS: dict[str, Settings] = {
    # A client is slow now and fast then: FedBuff's.
    "by turn": {"devices.delay": "half_normal", "devices.delay_of": "turn"},
    # A client is slow for ever.
    "by client": {"devices.delay": "exponential", "devices.delay_of": "client"},
    # Few are very slow for ever: sigma 1.5, the slowest of a hundred takes 11 times the mean.
    "heavy tail": {
        **{"devices.delay": "log_normal", "devices.delay_shape": 1.5},
        **{"devices.delay_of": "client"},
    },
}
DATA: dict[str, Settings] = {
    "iid": {"partition.kind": "iid"},
    # The sum over ten classes: 0.1 for each.
    "Dirichlet 0.1": {"partition.kind": "dirichlet", "partition.alpha": 1.0},
}
IN_FLIGHT = (10, 50)


class Cell(NamedTuple):
    """A place on the grid."""

    speed: str
    data: str
    in_flight: int

    @property
    def settings(self) -> Settings:
        """The part of an experiment that is alike for all methods."""
        return {"devices.delay_s": 1.0, **SPEEDS[self.speed], **DATA[self.data]}


GRID = [Cell(*place) for place in itertools.product(SPEEDS, DATA, IN_FLIGHT)]
#: Where settings are chosen, for each kind of data.
SEARCHED = [Cell("by client", data, 50) for data in DATA]


def cohort(in_flight: int, over: float) -> Settings:
    """Rounds of as many clients as are in flight, of which the first 1 / ``over`` count."""
    wanted = round(in_flight / over)
    return {
        **{"aggregation.strategy": "fedavg", "participation.mode": "cohort"},
        **{"participation.sampling_rate": wanted / CLIENTS},
        **{"participation.over_selection": min(over, in_flight / wanted)},
        **{"experiment.versions": MOST_UPDATES // wanted},
    }


def buffered(strategy: str) -> Callable[[int], Settings]:
    """A version for every K updates."""
    return lambda in_flight: {
        **{"aggregation.strategy": strategy, "aggregation.quorum": K},
        **{"participation.concurrency": in_flight, "experiment.versions": MOST_UPDATES // K},
    }


def one_by_one(strategy: str, more: Callable[[int], Settings]) -> Callable[[int], Settings]:
    """A version for every update."""
    return lambda in_flight: {
        **{"aggregation.strategy": strategy, "experiment.versions": MOST_UPDATES},
        **{"participation.concurrency": in_flight, **more(in_flight)},
    }


#: The settings of each method at so many clients in flight, without those that are searched for.
METHODS: dict[str, Callable[[int], Settings]] = {
    "FedAvg": lambda in_flight: cohort(in_flight, 1.0),
    "over-selection 1.3": lambda in_flight: cohort(in_flight, 1.3),
    "FedBuff": buffered("fedbuff"),
    "FedAsync": one_by_one("fedasync", lambda in_flight: {}),
    "CA2FL": buffered("ca2fl"),
    # R: nobody who is about as fast as the others is too late.
    "Ringmaster": one_by_one(
        "ringmaster", lambda in_flight: {"aggregation.delay_threshold": 2 * in_flight}
    ),
    "Rennala": buffered("rennala"),
    "FADAS": buffered("fadas"),
}

RATES = (0.5, 1.5, 4.0)
#: Six for those that have no rate of the server's.
MANY_RATES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.5)
_SERVER = "aggregation.server_learning_rate"
OWN: dict[str, tuple[str, tuple[float, ...]]] = {
    "FedBuff": (_SERVER, (0.5, 1.0)),
    "FedAsync": ("aggregation.mixing", (0.1, 0.3)),
    "CA2FL": (_SERVER, (0.5, 1.0)),
    "Ringmaster": (_SERVER, (0.1, 0.3)),
    "Rennala": (_SERVER, (0.5, 1.0)),
    "FADAS": (_SERVER, (0.03, 0.1)),
}


def tried(method: str) -> Iterator[Settings]:
    """Six settings."""
    if method not in OWN:
        yield from ({"training.learning_rate": rate} for rate in MANY_RATES)
        return
    key, values = OWN[method]
    for rate, value in itertools.product(RATES, values):
        yield {"training.learning_rate": rate, key: value}
