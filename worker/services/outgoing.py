"""An update on its way out: what the plan's ``[[update]]`` steps make of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fluffle.schemas import ClientUpdate, Plan, Tensors, transforms
from fluffle.schemas.tensors import DTYPES, spec
from fluffle.schemas.transforms import Draws
from fluffle.worker.training.seeds import Streams


def outgoing(
    update: ClientUpdate,
    plan: Plan,
    state: Tensors | None,
    noise: Callable[[], np.random.Generator],
) -> tuple[ClientUpdate, Tensors]:
    """What leaves, and what the client keeps for its next update.

    state: what it kept the last time; None where that is not here.
    noise: its generator; where privacy is wanted, seeded by nothing that anybody else knows.
        Everything else is drawn from the update's own streams.
    """
    if not plan.update:
        return update, {}
    streams = Streams(plan.seed, update.client, update.turn, update.base_version)
    draws = Draws(streams.generator("rounding"), noise())
    tensors, memory = transforms.apply(plan.update, update.tensors, draws, state or {})
    return update.model_copy(update={"tensors": tensors}), memory


def upload_bytes(plan: Plan, model: Tensors) -> int:
    """How much of an update of this model is tensors, but for what the strategy adds."""
    sent = transforms.sent_spec(plan.update or (), spec(model))
    return sum(math.prod(shape) * DTYPES[dtype].itemsize for dtype, shape in sent.values())
