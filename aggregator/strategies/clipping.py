"""Clipping of a delta for ``[privacy]``, and a norm that follows the lengths of deltas.

Flat and by tensor: McMahan, Ramage, Talwar, Zhang, arXiv 1710.06963, section 2 (per-layer clipping:
each of m tensors to C / sqrt(m), so that all together are no longer than C). Adaptive: Andrew,
Thakkar, McMahan, Ramaswamy: Differentially Private Learning with Adaptive Clipping, arXiv
1905.03871, Algorithm 1::

    b_i = 1 where |Delta_i| <= C_t, else 0
    b~ = 1/2 + (sum_i (b_i - 1/2) + N(0, sigma_b^2)) / m
    C_{t+1} = C_t exp(-eta (b~ - gamma))

The bits tell of the data as well. A client moves their sum by 1/2 at most, so that they and the
deltas together cost what noise of z alone would, where the sums of deltas have (Theorem 1)::

    z_Delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fluffle.aggregator.strategies.fold import squared_norm
from fluffle.schemas import Tensors


@dataclass(frozen=True, slots=True)
class Adaptive:
    """How C follows a quantile of the lengths."""

    #: gamma: the share of deltas that C leaves as they are.
    quantile: float
    #: eta
    rate: float
    #: sigma_b: the standard deviation of the noise on the sum of bits.
    bit_noise: float

    def noise_of_sums(self, z: float) -> float:
        """z_Delta. Needs sigma_b > z / 2."""
        return float((z**-2 - (2 * self.bit_noise) ** -2) ** -0.5)

    def next_norm(self, norm: float, bits: float, updates: float, drawn: float) -> float:
        """C_{t+1}, of sum_i (b_i - 1/2), m, and a standard normal number; C_t where none came."""
        if not updates:
            return norm
        share = 0.5 + (bits + self.bit_noise * drawn) / updates
        return norm * math.exp(-self.rate * (share - self.quantile))


def length_of(deltas: Tensors) -> float:
    """The length of all tensors together."""
    return math.sqrt(sum(map(squared_norm, deltas.values())))


def together(deltas: Tensors, norm: float, length: float) -> Tensors:
    """Delta min(1, C / |Delta|)"""
    if length <= norm:
        return deltas
    return {k: a.astype(np.float64) * (norm / length) for k, a in deltas.items()}


def by_tensor(deltas: Tensors, norm: float) -> Tensors:
    """Each tensor to C / sqrt(m)."""
    share, found = norm / math.sqrt(len(deltas)), Tensors()
    for key, array in deltas.items():
        found |= together({key: array}, share, math.sqrt(squared_norm(array)))
    return found
