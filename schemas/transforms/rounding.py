"""Fewer bits a value, rounded up or down at random such that the mean is the value itself.

Quantise is the stochastic k-level quantisation of Suresh, Yu, Kumar, McMahan: Distributed Mean
Estimation with Limited Communication, arXiv 1611.00429, section 2.2 (with one bit: 2.1)::

    B(r) = X_min + r s / (k - 1),   s = X_max - X_min
    X in [B(r), B(r + 1)) -> B(r + 1) with probability (X - B(r)) / (B(r + 1) - B(r)), else B(r)

over each tensor, k = 2^bits. Cast rounds in the same way to the two neighbours in 16 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fluffle.schemas.tensors import Spec, Tensors
from fluffle.schemas.transforms.base import Draws, Floats, is_trainable

_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class QuantiseTransform:
    """``bits`` a value, packed into bytes, beside each tensor's ``range/NAME`` (X_min, X_max)."""

    bits: int

    def spec(self, before: Spec) -> Spec:
        """Bytes, and two float32 for each tensor."""
        after: Spec = {}
        for name, (dtype, shape) in before.items():
            if is_trainable(name):
                after[name] = ("uint8", (-(-math.prod(shape) * self.bits // 8),))
                after[_range(name)] = ("float32", (2,))
            else:
                after[name] = (dtype, shape)
        return after

    def apply(self, tensors: Tensors, draws: Draws) -> Tensors:
        """Round and pack."""
        sent: Tensors = {}
        for name, array in tensors.items():
            if not is_trainable(name):
                sent[name] = array
                continue
            x: Floats = array.astype(np.float32).reshape(-1)
            low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
            step = (high - low) / self._top
            level = (x - low) / step if step > 0 else np.zeros_like(x)
            drawn = np.floor(level + draws.rounding.random(x.size, dtype=np.float32))
            sent[name] = self._packed(np.clip(drawn, 0, self._top).astype(np.uint8))
            sent[_range(name)] = np.array([low, high], np.float32)
        return sent

    def restore(self, tensors: Tensors, before: Spec) -> Tensors:
        """X_min + r (X_max - X_min) / (2^bits - 1)"""
        restored: Tensors = {}
        for name, (dtype, shape) in before.items():
            if not is_trainable(name):
                restored[name] = tensors[name]
                continue
            low, high = tensors[_range(name)].astype(np.float64)
            levels = self._unpacked(tensors[name].astype(np.uint8), math.prod(shape))
            with np.errstate(over="ignore", invalid="ignore"):  # refused as not finite later
                values = low + levels * ((high - low) / self._top)
                restored[name] = values.astype(dtype).reshape(shape)
        return restored

    @property
    def _top(self) -> int:
        return (1 << self.bits) - 1

    def _packed(self, levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        many = 8 // self.bits
        rows = np.pad(levels, (0, -levels.size % many)).reshape(-1, many)
        packed = np.zeros(len(rows), np.uint8)
        for i in range(many):
            packed |= rows[:, i] << np.uint8(i * self.bits)
        return packed

    def _unpacked(self, packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
        many = 8 // self.bits
        rows = [(packed >> np.uint8(i * self.bits)) & np.uint8(self._top) for i in range(many)]
        return np.stack(rows, axis=1).reshape(-1)[:count]


@dataclass(frozen=True)
class CastTransform:
    """float16, or bfloat16 as the upper half of a float32 (uint16). Larger than 65504: cut off."""

    dtype: Literal["float16", "bfloat16"]

    def spec(self, before: Spec) -> Spec:
        """16 bits a value."""
        wire = "float16" if self.dtype == "float16" else "uint16"
        return {
            n: (wire if is_trainable(n) else dtype, shape) for n, (dtype, shape) in before.items()
        }

    def apply(self, tensors: Tensors, draws: Draws) -> Tensors:
        """Round."""
        cast = _to_half if self.dtype == "float16" else _to_bfloat
        return {
            name: cast(array.astype(np.float32), draws.rounding) if is_trainable(name) else array
            for name, array in tensors.items()
        }

    def restore(self, tensors: Tensors, before: Spec) -> Tensors:
        """The same numbers in the model's dtypes."""
        restored: Tensors = {}
        for name, (dtype, _) in before.items():
            array = tensors[name]
            if is_trainable(name) and self.dtype == "bfloat16":
                array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
            restored[name] = array.astype(dtype, copy=False)
        return restored


def _to_half(x: Floats, rng: np.random.Generator) -> NDArray[np.float16]:
    nearest = np.clip(x, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
    missing = x - nearest.astype(np.float32)
    away = np.where(missing > 0, np.float16(np.inf), np.float16(-np.inf))
    neighbour = np.nextafter(nearest, away)
    gap = neighbour.astype(np.float32) - nearest.astype(np.float32)
    odds = np.divide(missing, gap, out=np.zeros_like(x), where=np.isfinite(gap))
    return np.where(rng.random(x.shape, dtype=np.float32) < odds, neighbour, nearest)


def _to_bfloat(x: Floats, rng: np.random.Generator) -> NDArray[np.uint16]:
    bits = x.view(np.uint32).astype(np.uint64)
    # Adding up to one unit of the half that is cut off carries with the right probability.
    bits += rng.integers(0, 2**16, x.shape, dtype=np.uint64)
    return np.asarray(np.minimum(bits, 0xFFFFFFFF) >> np.uint64(16), np.uint16)


def _range(name: str) -> str:
    return f"range/{name}"
