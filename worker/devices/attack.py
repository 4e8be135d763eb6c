"""Clients that send what harms: which they are, and what they make of their training.

For experiments on robust strategies: these clients train like all others, and then lie.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fluffle.schemas import Plan, Tensors
from fluffle.worker.devices.draws import generator


def is_byzantine(plan: Plan, client: str) -> bool:
    """Whether this is one of the ``devices.byzantine`` share of the plan's clients."""
    share = plan.devices.byzantine if plan.devices else None
    if not share or not client.isdecimal():
        return False
    return int(client) in _chosen(plan.seed, plan.task.clients, share)


def as_sent(plan: Plan, client: str, local: Tensors, base: Tensors) -> Tensors:
    """The values that a client pretends to have after its training, which gave ``local``.

    base - scale (local - base) of ``trainable`` tensors, so that what is sent as a delta
    points away from where training went. The other tensors stay as they are.
    """
    devices = plan.devices
    if devices is None or not is_byzantine(plan, client):
        return local
    scale = devices.byzantine_scale or 1.0
    return {
        key: np.subtract(base[key], scale * np.subtract(values, base[key]), dtype=values.dtype)
        if key.startswith("trainable/")
        else values
        for key, values in local.items()
    }


@lru_cache(maxsize=4)
def _chosen(seed: int, clients: int, share: float) -> frozenset[int]:
    order = generator("byzantine", seed).permutation(clients)
    return frozenset(order[: round(share * clients)].tolist())
