"""`[secure_aggregation]`: the aggregator learns sums of buffers, and what of the rest goes with it.

docs/secure-aggregation.md says who learns what.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fluffle.schemas.table import Positive, Table

if TYPE_CHECKING:
    from fluffle.schemas.experiment import Experiment

#: Steps of ``[[update]]`` that leave values which can be added up, and nothing to be undone.
ADDITIVE = ("clip", "noise")
#: Sums are numbers from -2^31 to 2^31 - 1.
CAPACITY = 2**31 - 1
#: With fewer steps between 0 and ``max_value`` a model would learn little.
COARSEST = 2**8

Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SecureTable(Table):
    """Buffered secure aggregation with a helper; see docs/secure-aggregation.md."""

    #: The helper's public key (X25519, 64 hexadecimal digits), as ``fluffle helper`` says it.
    #: Default: the run has a helper of its own, in its own process, which hides nothing from
    #: whoever runs it: for simulations.
    helper_key: Key | None = None
    #: The helper unmasks sums over this many different clients at least.
    min_clients: int = Field(3, ge=2, le=1_000_000)
    #: The weights of updates are whole numbers from 1 to this: a fresh update's (by examples: one
    #: of admission.max_examples) weighs so much, a stale one's less. More is finer, and lets a sum
    #: tell more of its heaviest update.
    max_weight: int = Field(16, ge=1, le=65_536)
    #: No value of a delta (or of batch-norm statistics) may be larger; a training that brings one
    #: fails. Smaller is finer.
    max_value: Positive = 1.0


class SecurePlan(Table):
    """What a client has to know of it; part of the plan."""

    helper_key: Key
    min_clients: int = Field(ge=2)
    max_weight: int = Field(ge=1)
    max_value: Positive
    #: A value x travels as the whole number nearest to scale x; a power of two.
    scale: Positive


def scale_of(table: SecureTable, quorum: int) -> float:
    """The largest power of two s with quorum max_weight ceil(s max_value) <= ``CAPACITY``.

    A buffer holds as many updates as its quorum at most, so that no sum ever wraps around.
    """
    most = CAPACITY // (quorum * table.max_weight)
    scale = 2.0 ** math.floor(math.log2(max(most, 1) / table.max_value))
    return scale if math.ceil(scale * table.max_value) <= most else scale / 2


def secure_plan(experiment: Experiment, own_key: str | None) -> SecurePlan | None:
    """The part of a plan; own_key is that of the run's own helper, where it has one."""
    table = experiment.secure_aggregation
    key = None if table is None else table.helper_key or own_key
    if table is None or key is None:
        return None
    return SecurePlan(
        helper_key=key,
        min_clients=table.min_clients,
        max_weight=table.max_weight,
        max_value=table.max_value,
        scale=scale_of(table, experiment.quorum),
    )


def check_secure(experiment: Experiment, able: list[str]) -> None:
    """Raises: ValueError where ``[secure_aggregation]`` does not go with the rest.

    able: strategies that add up what clients send, weighted, and look at nothing else.
    """
    table = experiment.secure_aggregation
    if table is None:
        return
    aggregation, name = experiment.aggregation, experiment.aggregation.strategy
    if name not in able:
        raise ValueError(
            f"secure_aggregation goes with {', '.join(able)}, which need only the sum of updates; "
            f"not with {name}"
        )
    if experiment.privacy is not None:
        raise ValueError(
            "[privacy] shortens updates at the aggregator, which sees none with "
            "secure_aggregation: clip and add noise at the clients, by [[update]]"
        )
    for step in experiment.update or ():
        if step.kind not in ADDITIVE:
            raise ValueError(
                f"[[update]] {step.kind} makes something of updates that cannot be added up "
                f"masked: with secure_aggregation there are {' and '.join(ADDITIVE)}"
            )
    needed = {
        "admission.norm_factor = 0: nobody sees how long an update is": (
            experiment.admission.norm_factor != 0
        ),
        "aggregation.keep_updates = false: masked updates can be replayed by nobody": (
            aggregation.keep_updates
        ),
        "aggregation.trigger = 'updates': a buffer has as many as its sum has room for": (
            aggregation.trigger != "updates"
        ),
        "admission.max_examples, the most that any client holds, up to 1000000: with weighting "
        "= 'examples' so many weigh max_weight": (
            getattr(aggregation, "weighting", "uniform") == "examples"
            and experiment.admission.max_examples > 1_000_000
        ),
        f"aggregation.quorum = {table.min_clients} (secure_aggregation.min_clients) or more": (
            experiment.quorum < table.min_clients
        ),
    }
    for what, missing in needed.items():
        if missing:
            raise ValueError(f"secure_aggregation needs {what}")
    if scale_of(table, experiment.quorum) * table.max_value < COARSEST:
        raise ValueError(
            "secure_aggregation has no room for so many weighted values: make "
            "secure_aggregation.max_weight or aggregation.quorum smaller"
        )
