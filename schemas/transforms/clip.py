"""Clipping and noise: done at the client, never undone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fluffle.schemas.tensors import Array, Spec, Tensors
from fluffle.schemas.transforms.base import Draws, is_trainable


@dataclass(frozen=True)
class ClipTransform:
    """values <- values min(1, norm / |values|_2), the norm over all of them together."""

    norm: float

    def spec(self, before: Spec) -> Spec:
        """The same."""
        return before

    def apply(self, tensors: Tensors, draws: Draws) -> Tensors:
        """Shorten."""
        length = math.sqrt(sum(_square(a) for name, a in tensors.items() if is_trainable(name)))
        if length <= self.norm:
            return tensors
        factor = self.norm / length
        return {
            name: (array.astype(np.float64) * factor).astype(array.dtype)
            if is_trainable(name)
            else array
            for name, array in tensors.items()
        }

    def restore(self, tensors: Tensors, before: Spec) -> Tensors:
        """As it came."""
        return tensors


@dataclass(frozen=True)
class NoiseTransform:
    """values <- values + N(0, std^2)"""

    std: float

    def spec(self, before: Spec) -> Spec:
        """The same."""
        return before

    def apply(self, tensors: Tensors, draws: Draws) -> Tensors:
        """Add noise."""
        return {
            name: self._noisy(array, draws) if is_trainable(name) else array
            for name, array in tensors.items()
        }

    def restore(self, tensors: Tensors, before: Spec) -> Tensors:
        """As it came."""
        return tensors

    def _noisy(self, array: Array, draws: Draws) -> Array:
        noise = draws.noise.normal(0.0, self.std, array.shape)
        return (array.astype(np.float64) + noise).astype(array.dtype)


def _square(array: Array) -> float:
    return float(np.sum(np.square(array, dtype=np.float64)))
