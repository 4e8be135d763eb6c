"""Sparsification: a share of the values, the rest kept for the client's next update.

Stich, Cordonnier, Jaggi: Sparsified SGD with Memory, arXiv 1809.07599, Algorithm 1: with v the
update and m the memory::

    g = comp_k(m + v),   m <- m + v - g

comp_k keeps the k values of largest magnitude (top_k), or k at random (random_k). Without memory
random_k sends (d / k) times the values it keeps, so that its mean is v; top_k is then biased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fluffle.schemas.tensors import Spec, Tensors
from fluffle.schemas.transforms.base import Draws, Floats

VALUES, INDICES, SEED, MEMORY = "sparse/values", "sparse/indices", "sparse/seed", "memory/0"


@dataclass(frozen=True)
class SparseTransform:
    """All trainable tensors as one vector of d values, of which k travel."""

    kind: Literal["top_k", "random_k"]
    share: float
    error_feedback: bool

    def spec(self, before: Spec) -> Spec:
        """k values, and where they belong: k indices (top_k) or the seed of a draw (random_k)."""
        k = self._kept(_size(before))
        place = (INDICES, ("uint32", (k,))) if self.kind == "top_k" else (SEED, ("uint32", (1,)))
        return _others(before) | {VALUES: ("float32", (k,)), place[0]: place[1]}

    def apply(self, tensors: Tensors, draws: Draws) -> Tensors:
        """Without memory."""
        return self.apply_with_memory(tensors, draws, {})[0]

    def apply_with_memory(
        self, tensors: Tensors, draws: Draws, memory: Tensors
    ) -> tuple[Tensors, Tensors]:
        """What travels, and the memory to keep: ``memory/0``, float32, shape (d,)."""
        parts = [array.reshape(-1) for name, array in tensors.items() if _is_trainable(name)]
        v: Floats = np.concatenate(parts, dtype=np.float32)
        if self.error_feedback and MEMORY in memory:
            v += memory[MEMORY].astype(np.float32)
        k = self._kept(v.size)
        others = {name: array for name, array in tensors.items() if not _is_trainable(name)}
        if self.kind == "top_k":
            at = np.sort(np.argpartition(np.abs(v), v.size - k)[v.size - k :])
            place = {INDICES: at.astype(np.uint32)}
        else:
            seed = draws.rounding.integers(2**32, dtype=np.uint32)
            at = _drawn(int(seed), v.size, k)
            place = {SEED: np.array([seed])}
        values = v[at]
        if not self.error_feedback:
            scale = v.size / k if self.kind == "random_k" else 1.0
            return others | {VALUES: (values * scale).astype(np.float32)} | place, {}
        v[at] = 0.0
        return others | {VALUES: values} | place, {MEMORY: v}

    def restore(self, tensors: Tensors, before: Spec) -> Tensors:
        """Zero where nothing came. Raises: ValueError for an index that cannot be."""
        d = _size(before)
        if self.kind == "top_k":
            at = tensors[INDICES].astype(np.int64)
            if at.size and (at[-1] >= d or (np.diff(at) <= 0).any()):
                raise ValueError("the indices are not ascending, or point beyond the model")
        else:
            at = _drawn(int(tensors[SEED][0]), d, self._kept(d))
        v = np.zeros(d, np.float32)
        v[at] = tensors[VALUES]
        restored, start = {}, 0
        for name, (dtype, shape) in before.items():
            if not _is_trainable(name):
                restored[name] = tensors[name]
                continue
            end = start + math.prod(shape)
            restored[name] = v[start:end].reshape(shape).astype(dtype, copy=False)
            start = end
        return restored

    def _kept(self, d: int) -> int:
        return max(1, min(d, round(self.share * d)))


def _drawn(seed: int, d: int, k: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """k of d places. By the generator that NumPy has frozen: both ends must draw the same."""
    return np.sort(np.random.RandomState(seed).permutation(d)[:k])


def _is_trainable(name: str) -> bool:
    return name.startswith("trainable/")


def _size(spec: Spec) -> int:
    return sum(math.prod(shape) for name, (_, shape) in spec.items() if _is_trainable(name))


def _others(spec: Spec) -> Spec:
    return {name: entry for name, entry in spec.items() if not _is_trainable(name)}
