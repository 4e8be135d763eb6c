"""An update on its way out: what the plan's ``[[update]]`` steps, and a mask, make of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fluffle.schemas import ClientUpdate, Plan, Tensors, transforms
from fluffle.schemas.masking import WORDS, Sealed, mask, masked_spec
from fluffle.schemas.secure import SecurePlan
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
    memory: Tensors = {}
    if plan.update:
        streams = Streams(plan.seed, update.client, update.turn, update.base_version)
        draws = Draws(streams.generator("rounding"), noise())
        tensors, memory = transforms.apply(plan.update, update.tensors, draws, state or {})
        update = update.model_copy(update={"tensors": tensors})
    if plan.secure:
        update = update.model_copy(update={"tensors": _masked(update, plan.secure)})
    return update, memory


def _masked(update: ClientUpdate, secure: SecurePlan) -> Tensors:
    """What the aggregator sees of an update. Raises: UserError for a value that has no room."""
    (words,) = masked_spec(update.tensors)[WORDS][1]
    sealed = Sealed(update.run.run_id, words, secure.min_clients, secure.max_weight)
    about = (secure.helper_key, sealed, update.update_id, update.client)
    return mask(update.tensors, *about, secure.scale, secure.max_value)


def upload_bytes(plan: Plan, model: Tensors) -> int:
    """How much of an update of this model is tensors, but for what the strategy adds."""
    sent = transforms.sent_spec(plan.update or (), spec(model))
    if plan.secure:
        sent = masked_spec(model)
    return sum(math.prod(shape) * DTYPES[dtype].itemsize for dtype, shape in sent.values())
