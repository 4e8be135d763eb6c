"""Seeded draws: every number is a function of what it is for, never of what was drawn before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

Distribution = Literal["constant", "uniform", "exponential", "half_normal", "log_normal", "pareto"]

#: Keeps the draws of different purposes apart.
_SALTS: Mapping[str, int] = {
    name: 0xD0_00 + i
    for i, name in enumerate(
        ("delay", "dropout", "epochs", "phase", "slot", "on_off", "hardware", "byzantine", "pause")
    )
}


def generator(purpose: str, *key: int) -> np.random.Generator:
    """The generator of this purpose for this key (seed, client, turn, …)."""
    return np.random.default_rng([_SALTS[purpose], *key])


def delay(
    rng: np.random.Generator, distribution: Distribution, mean: float, shape: float | None
) -> float:
    """One duration in seconds with this distribution and mean.

    uniform: on [0, 2 mean]. half_normal: |N(0, sigma)|, its mean sigma sqrt(2 / pi). log_normal:
    sigma = ``shape`` (default 1). pareto: exponent ``shape`` > 1 (default 2), the classical one
    that starts at its scale.
    """
    match distribution:
        case "constant":
            return mean
        case "uniform":
            return float(rng.uniform(0, 2 * mean))
        case "exponential":
            return float(rng.exponential(mean))
        case "half_normal":
            return abs(float(rng.normal(0, mean * math.sqrt(math.pi / 2))))
        case "log_normal":
            sigma = 1.0 if shape is None else shape
            return float(rng.lognormal(math.log(mean) - sigma**2 / 2, sigma)) if mean else 0.0
        case "pareto":
            exponent = 2.0 if shape is None else shape
            scale = mean * (exponent - 1) / exponent
            return float(scale * (1 + rng.pareto(exponent)))
